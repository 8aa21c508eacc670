"""What an answer shows, in a browser: Markdown, formulas, colored code, and none that harms."""
