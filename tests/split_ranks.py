"""Run by test_comm_split under mpiexec: train in two groups, compare the ranks, print digests of what is learned."""

from rehearsal_ranks import train

from knltrain.comm import compare_replicas, world
from knltrain.kernels import digest

if __name__ == "__main__":
    communicator = world()
    learned = train(communicator, 24, ["comm.fc=split", "comm.fc_group=2"])
    compare_replicas(communicator, learned, 0)
    if communicator.rank == 0:
        print(*(f"{digest(learned[name]):016x}" for name in sorted(learned)))
