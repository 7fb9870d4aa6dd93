"""What happens to data: plain functions on numpy and xarray. No Prefect here, and torch only inside functions."""
