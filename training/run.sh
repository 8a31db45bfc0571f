#!/bin/sh
# SPDX-License-Identifier: MIT
# Trains in the background, or goes on with what was begun; stop it with: kill $(cat run/pid)
cd "$(dirname "$0")" || exit 1
mkdir -p run
setsid nohup nice -n 19 "${PYTHON:-python3}" -u train.py --out run --steps "${STEPS:-12000}" >>run/train.log 2>&1 &
echo $! >run/pid
