"""Run by test_comm_factors under mpiexec: train by factors, compare the ranks, print rank 0's losses."""

from test_comm_factors import train

from knltrain.comm import compare_replicas, world

if __name__ == "__main__":
    communicator = world()
    learned, factors = train(communicator, "comm.fc=factors")
    if factors["layers"] != ["fc0.w", "fc1.w", "out.w"]:
        raise RuntimeError(f"by factors: {factors['layers']}")
    losses = learned.pop("loss")
    compare_replicas(communicator, learned, len(losses))
    if communicator.rank == 0:
        print(*(loss.hex() for loss in losses))
