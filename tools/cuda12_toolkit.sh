#!/usr/bin/env bash
# A CUDA 12.4 toolkit in a folder, as much of it as fastloss needs, from Debian's packages (trixie, non-free):
#
#     tools/cuda12_toolkit.sh build/cuda-12.4 && CUDA_HOME=build/cuda-12.4 make wheel
#
# A library made with it runs with every NVIDIA driver from 525 on; with CUDA 13, from 580 on. (The registry's wheels of
# nvcc 12 have no nvcc in them, and 12.4 is the newest 12 that Debian has.) Downloads 1 GB, leaves 150 MB; nothing on
# the system changes.
set -euo pipefail
target=$(realpath -m "${1:?the folder to make}")
[ -x "$target/bin/nvcc" ] && exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists,cache,x} "$target"/{bin,lib64,nvvm/bin}
touch "$work/status"
# The mirror that this system takes its own packages from.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main non-free" >"$work/sources.list"
cat >"$work/apt.conf" <<END
Dir::State "$work";
Dir::State::status "$work/status";
Dir::Cache "$work/cache";
Dir::Etc::sourcelist "$work/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Sandbox::User "root";
END
export APT_CONFIG="$work/apt.conf"
cd "$work"
apt-get update -qq
apt-get download -qq nvidia-cuda-toolkit nvidia-cuda-dev libcu++-dev libthrust-dev libcub-dev
for package in *.deb; do
  dpkg-deb --fsys-tarfile "$package" |
    tar -x -C x --exclude='*/'{compute-sanitizer,doc} --exclude='*/lib'{cub,cuf,cur,cus,n}'*.a'
done
cp x/usr/bin/{bin2c,cudafe++,fatbinary,nvlink,ptxas,cuobjdump} x/usr/lib/nvidia-cuda-toolkit/bin/nvcc "$target/bin/"
cp -r x/usr/lib/nvidia-cuda-toolkit/bin/crt "$target/bin/"
cp x/usr/lib/nvidia-cuda-toolkit/bin/cicc "$target/nvvm/bin/"
cp -r x/usr/lib/nvidia-cuda-toolkit/libdevice "$target/nvvm/"
cp -r x/usr/include "$target/"
cp x/usr/lib/x86_64-linux-gnu/*.a "$target/lib64/"
cat >"$target/bin/nvcc.profile" <<'END'
TOP              = $(_HERE_)/..
CICC_PATH        = $(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH             += $(CICC_PATH):$(_HERE_):
INCLUDES        +=  "-I$(TOP)/include" $(_SPACE_)
LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/lib64"
END
"$target/bin/nvcc" --version | tail -2
