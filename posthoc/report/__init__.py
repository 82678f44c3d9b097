"""Pictures: one specification per figure, shown in the report, in a notebook, or saved for a paper."""
