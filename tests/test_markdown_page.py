"""What an answer shows, in a browser: Markdown, formulas, colored code, and no answer that harms."""
