"""Speed on a CPU: blocks of rows on all cores, compiled loops, memory that is reused."""
