"""Theory beside measurement: python -m bioprop.bench.theory --config=configs/theory_fa.py"""
