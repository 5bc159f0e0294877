#!/bin/sh
# Tell Ray that AWS takes this spot machine away: sh deploy/spot_notice.sh HEAD:6379
# AWS announces it two minutes ahead, on the machine only. Ray then drains the node: it places nothing more there, and a
# run saves a checkpoint within ten steps and goes on elsewhere, which does not count as a failure.
metadata=${AWS_EC2_METADATA_SERVICE_ENDPOINT:-http://169.254.169.254}/latest
until token=$(curl -sf -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/api/token") &&
    curl -sf -H "X-aws-ec2-metadata-token: $token" "$metadata/meta-data/spot/instance-action"; do # 404 until the notice
    sleep 5
done

# Without --node-id Ray would drain the node that a driver connects to. That may be another one, or a cluster that is
# started for it. The node of this machine is the one whose raylet has one of its addresses.
for address in $(hostname -I); do
    for raylet in $(grep -lzx -e "--node_ip_address=$address" /proc/[0-9]*/cmdline 2>/dev/null); do
        node=$(tr '\0' '\n' <"$raylet" | sed -n 's/^--node_id=//p')
        [ -z "$node" ] || exec ray drain-node --address "$1" --node-id "$node" --reason DRAIN_NODE_REASON_PREEMPTION \
            --reason-message 'spot notice' --deadline-remaining-seconds 110
    done
done
echo "no raylet of Ray with an address of this machine ($(hostname -I)): start it with 'ray start' before this" >&2
exit 1
