"""The published study, reproduced: its trainings, its measures, and the page of what they show."""
