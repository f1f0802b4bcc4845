"""What `make up` runs on this machine: nodes as background processes, their logs under run/, their data under data/."""
