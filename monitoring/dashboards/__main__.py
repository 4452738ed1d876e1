"""`python -m monitoring.dashboards`: write the dashboards' JSON beside this file."""

from pathlib import Path

from monitoring.dashboards import boards

for name, text in boards().items():
    (Path(__file__).parent / name).write_text(text)
