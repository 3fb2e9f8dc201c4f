"""The page in a browser: at the widths of a phone and of a desk, without a network, and printed."""
import html
import json
import re
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.slow

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
# Tells the page around it what this one is like when all of it is there.
_PROBE = '''<script>
const faults = [];
addEventListener('error', event => faults.push(event.message || event.target.tagName), true);
addEventListener('securitypolicyviolation', event => faults.push(event.blockedURI));
addEventListener('load', () => {
  const page = document.documentElement;
  const seen = {
    inner: innerWidth, wide: page.scrollWidth, faults: faults,
    requests: performance.getEntriesByType('resource').map(entry => entry.name)
        .filter(name => !name.startsWith('data:')),
    images: [...document.images].map(image => [
        image.complete, image.naturalWidth, image.clientWidth, image.clientHeight]),
    // What sticks out and cannot be scrolled into sight.
    out: [...document.querySelectorAll('main *')].filter(node =>
        node.getBoundingClientRect().right > innerWidth + 1 && !node.closest('.scroll'))
        .map(node => node.tagName),
    scrolled: [...document.querySelectorAll('.scroll')].filter(
        node => node.scrollWidth > node.clientWidth).length,
    size: parseFloat(getComputedStyle(document.body).fontSize)};
  parent.postMessage(JSON.stringify(seen), '*');
});
</script>'''
# No window is narrower than 500 pixels, but a frame is.
_AROUND = '''<!doctype html><pre id="seen"></pre><script>
addEventListener('message', event => { document.getElementById('seen').textContent = event.data; });
</script><iframe src="page.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe>'''
# Each request for anything but what is in the file is refused, and reported.
_POLICY = '''<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:;
style-src 'unsafe-inline'; script-src 'unsafe-inline'">'''


@pytest.fixture(scope='module')
def chromium(tmp_path_factory):
  """chromium(*argv) runs a browser without a display or a network: what it prints, and logs."""
  found = next(filter(None, map(shutil.which, _NAMES)), None)
  if found is None:
    pytest.skip(f'there is no {" or ".join(_NAMES)} on PATH; Debian\'s package is chromium')
  profile = tmp_path_factory.mktemp('profile')

  def run(*argv):
    done = subprocess.run(
        [found, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run',
         '--disable-dev-shm-usage', '--disable-background-networking', '--proxy-server=127.0.0.1:9',
         '--enable-logging=stderr', f'--user-data-dir={profile}', *argv],
        capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    # What the browser says of its own is of the machine.
    return done.stdout, re.findall('.*CONSOLE.*', done.stderr)

  return run


def _seen(chromium, folder, page: bytes, width: int):
  """What the page is like in a frame, and what it logs."""
  text = page.decode()
  assert text.count('<head>') == 1
  (folder / 'page.html').write_text(text.replace('<head>', f'<head>{_POLICY}{_PROBE}'))
  (folder / 'around.html').write_text(_AROUND.replace('WIDTH', str(width)))
  dom, logged = chromium('--window-size=1400,1000', '--virtual-time-budget=10000', '--dump-dom',
                         (folder / 'around.html').as_uri())
  found = re.search(r'<pre id="seen">(.+?)</pre>', dom, re.DOTALL)[1]
  return json.loads(html.unescape(found)), logged


@pytest.mark.parametrize('width', [320, 390, 1280])
def test_it_fits_and_needs_no_network(chromium, made, tmp_path, width):
  """Nothing sticks out of the page; figures are there, whole and as large as there is room."""
  seen, logged = _seen(chromium, tmp_path, made['report.html'], width)
  assert seen['inner'] == width and seen['wide'] <= width
  assert seen['faults'] == seen['requests'] == seen['out'] == logged == []
  assert len(seen['images']) == sum(name.endswith('.png') for name in made) > 5
  for complete, natural, wide, high in seen['images']:
    assert complete and natural > 200 and 250 < wide <= width and high > 50
  assert seen['size'] >= 16
  assert (seen['scrolled'] > 0) == (width < 1280)  # Tables of this report fit a desk.


def test_the_check_sees_faults(chromium, made, tmp_path):
  """A page that is too wide, asks for something, and has a figure that is none."""
  bad = ('<main><div style="width: 500px">wide</div><img src="https://example.org/x.png">'
         '<img src="data:image/png;base64,AAAA"><script>nothing()</script>')
  page = made['report.html'].replace(b'<main>', bad.encode())
  seen, logged = _seen(chromium, tmp_path, page, 390)
  assert seen['wide'] > 390 and 'DIV' in seen['out']
  assert any('example.org' in fault for fault in seen['faults'])
  assert any('nothing' in fault for fault in seen['faults']) and 'IMG' in seen['faults']
  assert seen['images'][1][1] == 0 and len(logged) >= 2


def test_it_prints(chromium, made, tmp_path):
  """On pages; some, and no more than there is to see."""
  (tmp_path / 'report.html').write_bytes(made['report.html'])
  chromium(f'--print-to-pdf={tmp_path / "report.pdf"}', '--no-pdf-header-footer',
           (tmp_path / 'report.html').as_uri())
  pdf = (tmp_path / 'report.pdf').read_bytes()
  assert pdf.startswith(b'%PDF') and pdf.rstrip().endswith(b'%%EOF')
  assert 2 <= len(re.findall(rb'/Type\s*/Page\b', pdf)) <= 12
