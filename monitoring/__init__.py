"""What watches the exporter: alerts, recording rules, dashboards."""
