"""The method in memory: stages, guidance, schedules and densification, without files and without the viewer."""
