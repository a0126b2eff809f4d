"""Whatever runs stage jobs: Ray on this machine, and Ray on a cluster."""
