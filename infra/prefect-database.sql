-- run by the image of PostgreSQL when its volume is new: Prefect's database beside the catalog
CREATE DATABASE prefect;
