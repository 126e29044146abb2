"""What was measured, and how it reads: steps, verdict, table, plot and scalars."""
