"""What the rooms work with. Nothing here knows a room, the order of rooms, or the run folder."""
