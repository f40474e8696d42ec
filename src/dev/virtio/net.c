/* SPDX-License-Identifier: Apache-2.0 */
#include "dev/virtio/net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "base/units.h"
#include "dev/virtio/net_priv.h"

#define DEVICE_ID_NETWORK  1
#define PCI_CLASS_ETHERNET 0x020000u

#define NET_S_LINK_UP      1u /* 5.1.4 */
#define NET_S_ANNOUNCE     2u
#define NET_SPEED_MBIT     10000u
#define NET_DUPLEX_FULL    1u

/* Device configuration structure (5.1.4), up to what the features above need. */
enum config_offset {
    CONFIG_MAC = 0,
    CONFIG_STATUS = 6,
    CONFIG_PAIRS_MAX = 8,
    CONFIG_MTU = 10,
    CONFIG_SPEED = 12,
    CONFIG_DUPLEX = 16,
    CONFIG_BYTES = 17,
};

static const struct state_field net_fields[] = {
    STATE_BYTES(struct virtio_net_state, mac, 1, "MAC address"),
    STATE_U8(struct virtio_net_state, promisc, 1, 1, "Every packet is let in (5.1.6.5.1)"),
    STATE_U8(struct virtio_net_state, allmulti, 1, 0, "Every multicast packet is let in"),
    STATE_U8(struct virtio_net_state, alluni, 1, 0, "Every unicast packet is let in"),
    STATE_U8(struct virtio_net_state, nomulti, 1, 0, "No multicast packet is let in"),
    STATE_U8(struct virtio_net_state, nouni, 1, 0, "No unicast packet is let in"),
    STATE_U8(struct virtio_net_state, nobcast, 1, 0, "No broadcast packet is let in"),
    STATE_U8(struct virtio_net_state, uni_overflow, 1, 0,
             "The table of unicast addresses was too small, all are let in"),
    STATE_U8(struct virtio_net_state, multi_overflow, 1, 0, "Likewise for multicast addresses"),
    STATE_U8(struct virtio_net_state, uni_count, 1, 0, "Unicast addresses in the table"),
    STATE_U8(struct virtio_net_state, multi_count, 1, 0, "Multicast addresses in the table"),
    STATE_U16(struct virtio_net_state, pairs, 1, 1, "Queue pairs in use"),
    STATE_U8(struct virtio_net_state, announce, 1, 0, "The guest is asked to announce itself"),
    STATE_PAD(struct virtio_net_state, pad_),
    STATE_U64(struct virtio_net_state, offloads, 1, UINT64_MAX,
              "Offloads on receive that are on, among those negotiated"),
    STATE_BYTES(struct virtio_net_state, uni, 1, "Unicast addresses that are let in"),
    STATE_BYTES(struct virtio_net_state, multi, 1, "Multicast addresses that are let in"),
    STATE_U64(struct virtio_net_state, vlans, 1, 0, "VLANs that are let in, a bit each"),
};
static const struct state_table net_table =
    STATE_TABLE("virtio-net", struct virtio_net_state, 1, net_fields);

static struct virtio_net *to_net(struct virtio_device *dev)
{
    return CONTAINER_OF(dev, struct virtio_net, dev);
}

/* --- features --- */

/* A feature bit and the offloads behind it, for either direction. */
struct offload_feature {
    unsigned bit;
    unsigned offloads;
    unsigned requires; /* feature bit (5.1.3.1) */
};

static const struct offload_feature host_features[] = {
    {NET_F_CSUM,      NET_OFFLOAD_CSUM,                    NET_F_CSUM},
    {NET_F_HOST_TSO4, NET_OFFLOAD_TSO4,                    NET_F_CSUM},
    {NET_F_HOST_TSO6, NET_OFFLOAD_TSO6,                    NET_F_CSUM},
    {NET_F_HOST_ECN,  NET_OFFLOAD_ECN,                     NET_F_CSUM},
    {NET_F_HOST_USO,  NET_OFFLOAD_USO4 | NET_OFFLOAD_USO6, NET_F_CSUM},
};

static const struct offload_feature guest_features[] = {
    {NET_F_GUEST_CSUM, NET_OFFLOAD_CSUM, NET_F_GUEST_CSUM},
    {NET_F_GUEST_TSO4, NET_OFFLOAD_TSO4, NET_F_GUEST_CSUM},
    {NET_F_GUEST_TSO6, NET_OFFLOAD_TSO6, NET_F_GUEST_CSUM},
    {NET_F_GUEST_ECN,  NET_OFFLOAD_ECN,  NET_F_GUEST_CSUM},
    {NET_F_GUEST_USO4, NET_OFFLOAD_USO4, NET_F_GUEST_CSUM},
    {NET_F_GUEST_USO6, NET_OFFLOAD_USO6, NET_F_GUEST_CSUM},
};

/* Features that the offloads of a backend allow. */
static uint64_t features_of(const struct offload_feature *table, size_t count, unsigned offloads)
{
    uint64_t features = 0;

    for (size_t i = 0; i < count; i++) {
        if ((offloads & table[i].offloads) == table[i].offloads && offloads & NET_OFFLOAD_CSUM)
            features |= VIRTIO_BIT(table[i].bit);
    }
    return features;
}

/* Offloads that features ask for; what lacks the feature it depends on is not asked for. */
static unsigned offloads_of(const struct offload_feature *table, size_t count, uint64_t features)
{
    unsigned offloads = 0;

    for (size_t i = 0; i < count; i++) {
        if (features & VIRTIO_BIT(table[i].bit) && features & VIRTIO_BIT(table[i].requires))
            offloads |= table[i].offloads;
    }
    return offloads;
}

static uint64_t offered_features(const struct virtio_net *net)
{
    const struct net_backend *backend = net->net;
    uint64_t guest = features_of(guest_features, ARRAY_LEN(guest_features), backend->offloads_rx);
    uint64_t features = VIRTIO_BIT(NET_F_MAC) | VIRTIO_BIT(NET_F_MRG_RXBUF) |
                        VIRTIO_BIT(NET_F_STATUS) | VIRTIO_BIT(NET_F_CTRL_VQ) |
                        VIRTIO_BIT(NET_F_CTRL_RX) | VIRTIO_BIT(NET_F_CTRL_VLAN) |
                        VIRTIO_BIT(NET_F_CTRL_RX_EXTRA) | VIRTIO_BIT(NET_F_CTRL_MAC_ADDR) |
                        VIRTIO_BIT(NET_F_GUEST_ANNOUNCE) | VIRTIO_BIT(NET_F_SPEED_DUPLEX);

    features |= guest;
    features |= features_of(host_features, ARRAY_LEN(host_features), backend->offloads_tx);
    if (guest)
        features |= VIRTIO_BIT(NET_F_CTRL_GUEST_OFFLOADS);
    if (backend->mtu != 0)
        features |= VIRTIO_BIT(NET_F_MTU);
    if (net->pairs_max > 1)
        features |= VIRTIO_BIT(NET_F_MQ);
    return features;
}

/* --- what the backend has to know --- */

void net_watch(struct virtio_net *net, unsigned pair, bool rx, bool tx)
{
    if (rx == net->rx[pair].watched && tx == net->tx[pair].watched)
        return;
    net->rx[pair].watched = rx;
    net->tx[pair].watched = tx;
    net->net->ops->watch(net->net, pair, rx, tx);
}

int net_apply_offloads(struct virtio_net *net)
{
    int ret;

    net->rx_offloads = offloads_of(guest_features, ARRAY_LEN(guest_features),
                                   net->dev.features & net->state.offloads);
    ret = net->net->ops->set_offloads(net->net, net->rx_offloads);
    return ret;
}

int net_apply_pairs(struct virtio_net *net)
{
    int ret = net->net->ops->set_queue_pairs(net->net, net->state.pairs);

    if (ret < 0)
        return ret;
    for (unsigned i = 0; i < net->pairs_max; i++) {
        if (i >= net->state.pairs) {
            net_watch(net, i, false, false);
            continue;
        }
        if (net_rx_queue(net, i)->s->enabled)
            virtio_queue_kick_later(&net->dev, net_rx_queue(net, i));
        if (net_tx_queue(net, i)->s->enabled)
            virtio_queue_kick_later(&net->dev, net_tx_queue(net, i));
    }
    return 0;
}

/*
 * The driver took over: the first kick after DRIVER_OK, which the transport gives every queue, or
 * the first after a restore. Not in driver_ok itself, which runs on a vCPU's thread.
 */
static void sync_backend(struct virtio_net *net)
{
    int ret;

    net->synced = true;
    net->tx_offloads = offloads_of(host_features, ARRAY_LEN(host_features), net->dev.features);
    if (net->state.pairs == 0 || net->state.pairs > net->pairs_max)
        net->state.pairs = 1; /* a snapshot of a card with more queues */
    ret = net_apply_pairs(net);
    if (ret == 0)
        ret = net_apply_offloads(net);
    if (ret < 0)
        log_guest(&net->dev.fn.dev.log_budget, net->dev.fn.dev.name,
                  "%s cannot be set up as the guest asks: %s", net->net->description,
                  strerror(-ret));
}

static void look_at_link(struct virtio_net *net)
{
    if (net->net->link_up == net->link_up)
        return;
    net->link_up = net->net->link_up;
    virtio_config_changed(&net->dev);
    /* A backend that has gone never has room again: what waits for that is dropped. */
    for (unsigned i = 0; !net->link_up && i < net->pairs_max; i++) {
        if (!net->tx[i].watched)
            continue;
        net_watch(net, i, net->rx[i].watched, false);
        virtio_queue_kick_later(&net->dev, net_tx_queue(net, i));
    }
}

/* The backend's calls, on the home loop without the device lock. */

static void backend_rx_ready(void *ctx, unsigned pair)
{
    struct virtio_net *net = ctx;

    device_lock(&net->dev.fn.dev);
    look_at_link(net);
    /* A device that was reset meanwhile stops listening here, on the right thread. */
    if (net->synced && virtio_is_live(&net->dev))
        net_rx_run(net, pair);
    else
        net_watch(net, pair, false, net->tx[pair].watched);
    device_unlock(&net->dev.fn.dev);
}

static void backend_tx_ready(void *ctx, unsigned pair)
{
    struct virtio_net *net = ctx;

    device_lock(&net->dev.fn.dev);
    net_watch(net, pair, net->rx[pair].watched, false);
    if (net->synced && virtio_is_live(&net->dev))
        net_tx_run(net, pair);
    device_unlock(&net->dev.fn.dev);
}

/* --- the device's side --- */

/* 5.1.2: the control queue comes behind all queue pairs, or behind one where MQ is not in use. */
static unsigned ctrl_index(const struct virtio_net *net)
{
    return virtio_has_feature(&net->dev, NET_F_MQ) ? 2 * net->pairs_max : 2;
}

static void net_queue_kick(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_net *net = to_net(dev);

    if (!net->synced)
        sync_backend(net);
    if (vq->index == ctrl_index(net)) {
        if (virtio_has_feature(dev, NET_F_CTRL_VQ))
            net_ctrl_run(net, vq);
        return;
    }
    unsigned pair = vq->index / 2;
    if (pair >= net->state.pairs)
        return;
    if (vq->index % 2 == 0)
        net_rx_run(net, pair);
    else if (!net->tx[pair].watched)
        net_tx_run(net, pair);
}

/* Nothing is ever in flight: packets are sent and received within a turn. The backend's watches
 * end on the home loop, when they next fire. */
static bool net_reset(struct virtio_device *dev, struct virtq *vq)
{
    struct virtio_net *net = to_net(dev);

    if (vq) {
        if (vq->index % 2 == 0 && vq->index / 2 < net->pairs_max)
            net->rx[vq->index / 2].pending = 0;
        return true;
    }
    state_reset(&net_table, &net->state);
    memcpy(net->state.mac, net->mac, sizeof(net->mac));
    net->synced = false;
    net->tx_offloads = net->rx_offloads = 0;
    for (unsigned i = 0; i < net->pairs_max; i++)
        net->rx[i].pending = 0;
    return true;
}

static void net_config_read(struct virtio_device *dev, unsigned offset, void *buf, unsigned size)
{
    struct virtio_net *net = to_net(dev);
    uint8_t config[CONFIG_BYTES] = {0};

    memcpy(config + CONFIG_MAC, net->state.mac, sizeof(net->state.mac));
    store_le16(config + CONFIG_STATUS, (uint16_t)((net->link_up ? NET_S_LINK_UP : 0) |
                                                  (net->state.announce ? NET_S_ANNOUNCE : 0)));
    store_le16(config + CONFIG_PAIRS_MAX, (uint16_t)net->pairs_max);
    store_le16(config + CONFIG_MTU, net->net->mtu ? net->net->mtu : 1500);
    store_le32(config + CONFIG_SPEED, NET_SPEED_MBIT);
    config[CONFIG_DUPLEX] = NET_DUPLEX_FULL;
    memcpy(buf, config + offset, size);
}

void virtio_net_announce(struct virtio_device *dev)
{
    struct virtio_net *net = to_net(dev);

    if (!virtio_has_feature(dev, NET_F_GUEST_ANNOUNCE) || !virtio_is_live(dev))
        return;
    net->state.announce = 1;
    virtio_config_changed(dev);
}

static void net_fini(struct virtio_device *dev)
{
    struct virtio_net *net = to_net(dev);

    net_close(net->net);
    free(net);
}

static const struct virtio_ops net_ops = {
    .device_id = DEVICE_ID_NETWORK,
    .class_code = PCI_CLASS_ETHERNET,
    .queue_kick = net_queue_kick,
    .reset = net_reset,
    .config_read = net_config_read,
    .fini = net_fini,
};

/* --- life --- */

struct attach_call {
    struct virtio_net *net;
    struct loop *loop;
    int ret;
};

static void attach_backend(void *arg)
{
    struct attach_call *call = arg;
    struct net_backend *backend = call->net->net;

    for (unsigned i = 0; call->ret == 0 && i < call->net->pairs_max; i++)
        call->ret = backend->ops->attach(backend, i, call->loop, backend_rx_ready, backend_tx_ready,
                                         call->net);
}

int virtio_net_new(struct virtio_device **dev, const struct virtio_env *env, const char *name,
                   struct net_backend *backend, const struct virtio_net_options *options,
                   struct err *err)
{
    unsigned pairs = backend->queue_pairs;
    struct virtio_net *net;
    int ret;

    if (options->queue_pairs && options->queue_pairs < pairs)
        pairs = options->queue_pairs;
    if (pairs > VIRTIO_NET_PAIRS_MAX)
        pairs = VIRTIO_NET_PAIRS_MAX;
    if (options->mac[0] & 1)
        return err_set(err, EINVAL, "%s: the MAC address is one for multicast", name);
    net = calloc(1, sizeof(*net) + pairs * sizeof(net->rx[0]));
    if (!net)
        return err_set(err, ENOMEM, "%s: no memory for a network card", name);
    ret = virtio_init(&net->dev, &net_ops, env, name, 2 * pairs + 1, VIRTIO_NET_QUEUE_SIZE,
                      CONFIG_BYTES, &net_table, &net->state, err);
    if (ret < 0) {
        free(net);
        return ret;
    }
    net->net = backend;
    net->pairs_max = pairs;
    net->link_up = backend->link_up;
    memcpy(net->mac, options->mac, sizeof(net->mac));
    net->dev.features_offered = offered_features(net);
    net_reset(&net->dev, NULL);

    struct attach_call call = {.net = net, .loop = env->loop};
    loop_call(env->loop, attach_backend, &call);
    if (call.ret < 0) {
        virtio_fini(&net->dev);
        free(net);
        return err_errno(err, call.ret, "%s: cannot serve %s", name, backend->description);
    }
    *dev = &net->dev;
    return 0;
}
