"""Training objective: assignment (section 3.5), losses (eq. 2 to 7) and their weighted sum (eq. 8)."""
