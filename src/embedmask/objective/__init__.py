"""What the network is asked for: assignment (section 3.5), losses (eq. 2 to 7) and their sum (eq. 8)."""
