"""`python -m device_sim` is `fleet-sim`."""

from provisioning.program.starting import importing

with importing():
    from device_sim.cli import main

if __name__ == "__main__":
    main()
