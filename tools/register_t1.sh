#!/usr/bin/env bash
# Brains out of T1 scans, bias-corrected and on a template, as Medical Transformer prepares them (section 4.1.1), by FSL.
#
#     tools/register_t1.sh TEMPLATE SOURCE OUTPUT [SCAN...]
#
# TEMPLATE is a skull-stripped brain of the grid that is wanted: ICBM 2009c at 1 mm has the paper's 193 x 229 x 193
# voxels. SOURCE is the folder of a data set, OUTPUT another folder, which gets a file a scan at the scan's path below
# SOURCE, and the tables (.csv, .tsv) of the folders above it. So `python -m common.data prepare` reads OUTPUT as it
# reads SOURCE. Without SCAN these are all *T1*.nii and *T1*.nii.gz below SOURCE, but for derivatives of BIDS.
# Files that are there are kept, so that it can be run again, or several times at once with other scans.
# FSL (bet, flirt, fast) is not part of this collection: https://fsl.fmrib.ox.ac.uk, free for research.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: $0 TEMPLATE SOURCE OUTPUT [SCAN...]" >&2
    exit 2
fi
template=$1 source=$2 output=$3
shift 3
for tool in bet flirt fast; do
    command -v "$tool" > /dev/null || { echo "error: $tool of FSL is not on the PATH: install FSL." >&2; exit 1; }
done
[ -f "$template" ] || { echo "error: no template $template: give a skull-stripped brain." >&2; exit 1; }
[ -d "$source" ] || { echo "error: no folder $source: give that of the data set." >&2; exit 1; }
source=$(cd "$source" && pwd)
mkdir -p "$output"
output=$(cd "$output" && pwd)
if [[ $output/ == "$source"/* ]]; then
    echo "error: $output is in $source: give an output folder outside of it." >&2
    exit 1
fi
if [ $# -eq 0 ]; then
    while IFS= read -r -d '' scan; do
        set -- "$@" "$scan"
    done < <(find -L "$source" -name derivatives -prune -o -type f ! -name '.*' \
        \( -name '*T1*.nii' -o -name '*T1*.nii.gz' \) -print0 | sort -z)
    [ $# -gt 0 ] || { echo "error: no *T1*.nii or *T1*.nii.gz is below $source: name the scans." >&2; exit 1; }
fi
for scan in "$@"; do
    [ -f "$scan" ] || { echo "error: no scan $scan." >&2; exit 1; }
    folder=$(cd "$(dirname "$scan")" && pwd)
    [[ $folder/ == "$source"/* ]] || { echo "error: $scan is not below $source: name its data set." >&2; exit 1; }
done
export FSLOUTPUTTYPE=NIFTI_GZ
work=$(mktemp -d "$output/.work.XXXXXX") # beside the results, so that each appears there whole
trap 'rm -rf "$work"' EXIT
for scan in "$@"; do
    folder=$(cd "$(dirname "$scan")" && pwd)
    below=${folder#"$source"}
    name=$(basename "$scan")
    name=${name%.gz}
    name=${name%.nii}
    [ -f "$output$below/$name.nii.gz" ] && continue
    echo "$scan"
    bet "$scan" "$work/brain" -R
    flirt -in "$work/brain" -ref "$template" -out "$work/placed" -dof 12 -interp trilinear
    fast -t 1 -B -o "$work/fast" "$work/placed"
    mkdir -p "$output$below"
    while :; do
        for table in "$source$below"/*.[ct]sv; do
            [ -f "$table" ] && cp "$table" "$output$below/"
        done
        [ -n "$below" ] || break
        below=${below%/*}
    done
    mv "$work/fast_restore.nii.gz" "$output${folder#"$source"}/$name.nii.gz"
done
