"""Keep the table of predictions: its rows, its runs, and what is done already."""
