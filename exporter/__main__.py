"""`python -m exporter` is `esms-exporter`."""

from exporter.cli import main

if __name__ == "__main__":
    main()
