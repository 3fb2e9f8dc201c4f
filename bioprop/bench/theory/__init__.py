"""Theory beside measurement: bioprop theory --config=theory_fa"""
