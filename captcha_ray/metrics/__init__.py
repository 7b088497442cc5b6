"""Count and compare how well texts are recognized; numpy only."""
