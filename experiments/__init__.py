"""Every number of the book: one script a question, and what scripts share (README.md has the rules)."""
