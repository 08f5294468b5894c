#!/bin/bash
# ImageNet, as downloaded, into HDF5 shards: train/ and val/ for every other job.
#
# 1,281,167 + 50,000 JPEG files. KIND=photos (default): as they are, 148 + 7 GB, for the ResNet jobs, whose crops of random
# area and aspect need whole photos. KIND=squares: raw pixels warped to 256 x 256, 252 + 10 GB, for alexnet_512knl.sh and
# resnet50_512knl.sh, as Caffe's data were. Options for `knltrain pack` at the end of the line win over these.
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
KIND=${KIND:-photos}                                  # edit 3: photos or squares
set -u
# shellcheck source=jobs/env.sh
. "${KNLTRAIN_ROOT:-${SLURM_SUBMIT_DIR:-.}}/jobs/env.sh" || exit 2

case $KIND in # train/ and val/ are made in DATA
photos) DATA=${DATA:-${SCRATCH:-$HOME}/imagenet} options=(--encoding jpeg --size 0) ;;
squares) DATA=${DATA:-${SCRATCH:-$HOME}/imagenet-squares} options=(--encoding raw --size 256 --fit warp) ;;
*) echo "pack_imagenet: found KIND=$KIND, expected photos or squares" && exit 2 ;;
esac
for part in train val; do
  source=$SOURCE/$part
  [ -e "$source" ] || source=$SOURCE/$part.tar
  [ -e "$source" ] || source=$SOURCE/ILSVRC2012_img_$part.tar
  classes=()
  # the official validation tar has no class folders: lists say what each picture shows (docs/shards.md)
  if [ "$part" = val ] && [ -e "$SOURCE/val.txt" ]; then
    classes=(--ground-truth "$SOURCE/val.txt" --synsets "$SOURCE/synset_words.txt")
  fi
  srun python -m knltrain pack "$source" "$DATA/$part" "${classes[@]}" "${options[@]}" "$@" || exit
done

# the mean picture that alexnet_bn_32k_lars.toml subtracts; JPEG shards have none
if srun -N 1 -n 1 python -m knltrain shards "$DATA/train" | grep -q '^encoding  raw'; then
  srun -N 1 -n 1 python -m knltrain shards "$DATA/train" --mean "$DATA/mean.npy"
fi
