"""How data sets lie on disks: plain folders, and those that were published."""
