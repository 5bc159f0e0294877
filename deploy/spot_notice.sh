#!/bin/sh
# Tell Ray that AWS takes this spot machine away: sh deploy/spot_notice.sh HEAD:6379
# AWS announces it two minutes ahead, on the machine only. Ray then drains the node: it places nothing more there, and a
# run saves a checkpoint within ten steps and goes on elsewhere, which does not count as a failure.
metadata=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest
until token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token") &&
    curl -sf -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/spot/instance-action"; do # 404 until the notice
    sleep 5
done
exec ray drain-node --address "$1" --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message 'spot notice' --deadline-remaining-seconds 110
