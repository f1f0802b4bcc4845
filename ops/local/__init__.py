"""What `make up` runs on this machine: the stack as background processes, their logs under run/, their data under data/."""
