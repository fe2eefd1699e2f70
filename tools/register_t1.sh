#!/usr/bin/env bash
# Brains out of T1 scans, bias-corrected and on a template, as Medical Transformer prepares them (section 4.1.1), by FSL.
#
#     tools/register_t1.sh TEMPLATE OUTPUT SCAN...
#
# TEMPLATE is a skull-stripped brain of the grid that is wanted: ICBM 2009c at 1 mm has the paper's 193 x 229 x 193
# voxels. OUTPUT gets a file a scan, of the scan's name; those that are there are kept, so that it can be run again.
# FSL (bet, flirt, fast) is not part of this collection: https://fsl.fmrib.ox.ac.uk, free for research.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 TEMPLATE OUTPUT SCAN..." >&2
    exit 2
fi
template=$1 output=$2
shift 2
for tool in bet flirt fast; do
    command -v "$tool" > /dev/null || { echo "error: $tool of FSL is not on the PATH: install FSL." >&2; exit 1; }
done
[ -f "$template" ] || { echo "error: no template $template: give a skull-stripped brain." >&2; exit 1; }
export FSLOUTPUTTYPE=NIFTI_GZ
mkdir -p "$output"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for scan in "$@"; do
    name=$(basename "$scan")
    name=${name%.gz}
    name=${name%.nii}
    [ -f "$output/$name.nii.gz" ] && continue
    echo "$scan"
    bet "$scan" "$work/brain" -R
    flirt -in "$work/brain" -ref "$template" -out "$work/placed" -dof 12 -interp trilinear
    fast -t 1 -B -o "$work/fast" "$work/placed"
    mv "$work/fast_restore.nii.gz" "$output/$name.nii.gz"
done
