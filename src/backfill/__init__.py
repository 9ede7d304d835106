"""A PostgreSQL-backed async priority job queue that shares its schema with Graphile Worker."""
