#!/bin/bash
# ImageNet, as downloaded, into HDF5 shards: train/ and val/ for every other job.
#
# 1,281,167 + 50,000 JPEG files; with --encoding raw 252 + 10 GB, with --encoding jpeg about 42 + 2 GB.
# SOURCE holds train and val as class folders or tars of them, or the official ILSVRC2012_img_{train,val}.tar; the latter
# with Caffe's val.txt and synset_words.txt beside it.
#
# On Lustre: lfs setstripe -c 1 DATA first, so that each shard lies on one target and many targets share the load.
#
##SBATCH --account=MINE --partition=THEIRS  # edit 1, where the site wants it: remove one #
#SBATCH --job-name=pack_imagenet
#SBATCH --nodes=4 --ntasks-per-node=16 --cpus-per-task=4
#SBATCH --exclusive --mem=0 --time=04:00:00
#SBATCH --open-mode=append --output=%x-%j.out
SOURCE=${SOURCE:-${SCRATCH:-$HOME}/imagenet/original} # edit 2: class folders (or tars of them) train and val
DATA=${DATA:-${SCRATCH:-$HOME}/imagenet}              # edit 3: train/ and val/ are made here
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2

for part in train val; do
  source=$SOURCE/$part
  [ -e "$source" ] || source=$SOURCE/$part.tar
  [ -e "$source" ] || source=$SOURCE/ILSVRC2012_img_$part.tar
  classes=()
  # the official validation tar has no class folders: lists say what each picture shows (docs/shards.md)
  if [ "$part" = val ] && [ -e "$SOURCE/val.txt" ]; then
    classes=(--ground-truth "$SOURCE/val.txt" --synsets "$SOURCE/synset_words.txt")
  fi
  srun python -m knltrain pack "$source" "$DATA/$part" "${classes[@]}" "$@" || exit
done

# the mean picture that alexnet_bn_32k_lars.toml subtracts; JPEG shards have none
if srun -N 1 -n 1 python -m knltrain shards "$DATA/train" | grep -q '^encoding  raw'; then
  srun -N 1 -n 1 python -m knltrain shards "$DATA/train" --mean "$DATA/mean.npy"
fi
