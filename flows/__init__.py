"""Order, schedules, retries, artifacts, and the command line. No torch, xarray or boto3 here."""
