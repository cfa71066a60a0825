"""The method in memory: stages, guidance, schedules, densification. It knows no disk and no page."""
