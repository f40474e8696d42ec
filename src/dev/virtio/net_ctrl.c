/* SPDX-License-Identifier: Apache-2.0 */
/* The control queue (virtio 1.2, 5.1.6.5) and the receive filter that it sets. */
#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/units.h"
#include "dev/virtio/net_priv.h"
#include "net/packet.h"

#define CTRL_OK            0
#define CTRL_ERR           1
#define TURN_COMMANDS      64
#define COMMAND_BYTES      2 /* class and command; data follows */

#define ETHERTYPE_VLAN_TAG 0x8100u
#define VLAN_ID_MASK       0x0fffu

/* --- the filter --- */

static bool table_has(const uint8_t *table, unsigned count, const uint8_t *mac)
{
    for (unsigned i = 0; i < count && i < NET_MAC_TABLE_MAX; i++) {
        if (memcmp(table + 6 * i, mac, 6) == 0)
            return true;
    }
    return false;
}

bool net_filter_accepts(const struct virtio_net *net, const uint8_t head[18])
{
    static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
    const struct virtio_net_state *s = &net->state;

    if (s->promisc)
        return true;
    if (virtio_has_feature(&net->dev, NET_F_CTRL_VLAN) &&
        (head[12] << 8 | head[13]) == ETHERTYPE_VLAN_TAG &&
        !bitmap_test(s->vlans, (unsigned)(head[14] << 8 | head[15]) & VLAN_ID_MASK))
        return false;
    if (memcmp(head, broadcast, 6) == 0)
        return !s->nobcast;
    if (head[0] & 1)
        return !s->nomulti &&
               (s->allmulti || s->multi_overflow || table_has(s->multi, s->multi_count, head));
    return !s->nouni && (s->alluni || s->uni_overflow || memcmp(head, s->mac, 6) == 0 ||
                         table_has(s->uni, s->uni_count, head));
}

/* --- commands --- */

/* The data of a command: reads are bounds-checked. */
struct command {
    const struct virtq_chain *chain;
    uint8_t class, number;
    uint64_t data_len;
};

static bool command_read(const struct command *command, uint64_t offset, void *buf, size_t len)
{
    if (!range_fits(offset, len, command->data_len))
        return false;
    return virtq_chain_read(command->chain, COMMAND_BYTES + offset, buf, len) == len;
}

static uint8_t set_rx_mode(struct virtio_net *net, const struct command *command)
{
    struct virtio_net_state *s = &net->state;
    uint8_t *const modes[] = {&s->promisc, &s->allmulti, &s->alluni,
                              &s->nomulti, &s->nouni,    &s->nobcast};
    uint8_t on;

    if (!command_read(command, 0, &on, 1))
        return CTRL_ERR;
    *modes[command->number] = on != 0;
    return CTRL_OK;
}

struct mac_table {
    uint8_t macs[NET_MAC_TABLE_MAX * 6];
    uint8_t count;
    uint8_t overflow;
};

/* One of the two tables, at *offset, which moves behind it. */
static bool read_mac_table(const struct command *command, uint64_t *offset, struct mac_table *table)
{
    uint8_t count[4];

    if (!command_read(command, *offset, count, sizeof(count)))
        return false;
    uint64_t bytes = 6ull * load_le32(count);
    *offset += sizeof(count);
    if (!range_fits(*offset, bytes, command->data_len))
        return false;
    *table = (struct mac_table){.overflow = bytes > sizeof(table->macs)};
    if (!table->overflow) {
        table->count = (uint8_t)(bytes / 6);
        if (bytes && !command_read(command, *offset, table->macs, (size_t)bytes))
            return false;
    }
    *offset += bytes;
    return true;
}

static uint8_t set_mac_tables(struct virtio_net *net, const struct command *command)
{
    struct virtio_net_state *s = &net->state;
    struct mac_table uni, multi;
    uint64_t offset = 0;

    if (!read_mac_table(command, &offset, &uni) || !read_mac_table(command, &offset, &multi) ||
        offset != command->data_len)
        return CTRL_ERR;
    memcpy(s->uni, uni.macs, sizeof(s->uni));
    memcpy(s->multi, multi.macs, sizeof(s->multi));
    s->uni_count = uni.count;
    s->multi_count = multi.count;
    s->uni_overflow = uni.overflow;
    s->multi_overflow = multi.overflow;
    return CTRL_OK;
}

static uint8_t set_mac(struct virtio_net *net, const struct command *command)
{
    uint8_t mac[6];

    if (!command_read(command, 0, mac, sizeof(mac)) || mac[0] & 1)
        return CTRL_ERR;
    memcpy(net->state.mac, mac, sizeof(mac));
    return CTRL_OK;
}

static uint8_t set_vlan(struct virtio_net *net, const struct command *command)
{
    uint8_t id[2];

    if (!command_read(command, 0, id, sizeof(id)) || load_le16(id) > VLAN_ID_MASK)
        return CTRL_ERR;
    if (command->number == 0)
        bitmap_set(net->state.vlans, load_le16(id));
    else
        bitmap_clear(net->state.vlans, load_le16(id));
    return CTRL_OK;
}

static uint8_t acknowledge_announce(struct virtio_net *net, const struct command *command)
{
    (void)command;
    net->state.announce = 0;
    return CTRL_OK;
}

static uint8_t set_pairs(struct virtio_net *net, const struct command *command)
{
    uint16_t before = net->state.pairs;
    uint8_t pairs[2];

    if (!command_read(command, 0, pairs, sizeof(pairs)) || load_le16(pairs) == 0 ||
        load_le16(pairs) > net->pairs_max)
        return CTRL_ERR;
    net->state.pairs = load_le16(pairs);
    if (net_apply_pairs(net) == 0)
        return CTRL_OK;
    net->state.pairs = before;
    return CTRL_ERR;
}

static uint8_t set_offloads(struct virtio_net *net, const struct command *command)
{
    const uint64_t possible = VIRTIO_BIT(NET_F_GUEST_CSUM) | VIRTIO_BIT(NET_F_GUEST_TSO4) |
                              VIRTIO_BIT(NET_F_GUEST_TSO6) | VIRTIO_BIT(NET_F_GUEST_ECN) |
                              VIRTIO_BIT(NET_F_GUEST_USO4) | VIRTIO_BIT(NET_F_GUEST_USO6);
    uint64_t before = net->state.offloads;
    uint8_t offloads[8];

    if (!command_read(command, 0, offloads, sizeof(offloads)) ||
        load_le64(offloads) & ~(net->dev.features & possible))
        return CTRL_ERR;
    net->state.offloads = load_le64(offloads);
    if (net_apply_offloads(net) == 0)
        return CTRL_OK;
    net->state.offloads = before;
    return CTRL_ERR;
}

static const struct ctrl_command {
    uint8_t class, number;
    uint8_t feature;  /* that must have been negotiated */
    int16_t data_len; /* -1: checked by fn */
    uint8_t (*fn)(struct virtio_net *net, const struct command *command);
} ctrl_commands[] = {
    {0, 0, NET_F_CTRL_RX,             1,  set_rx_mode         }, /* PROMISC */
    {0, 1, NET_F_CTRL_RX,             1,  set_rx_mode         }, /* ALLMULTI */
    {0, 2, NET_F_CTRL_RX_EXTRA,       1,  set_rx_mode         }, /* ALLUNI */
    {0, 3, NET_F_CTRL_RX_EXTRA,       1,  set_rx_mode         }, /* NOMULTI */
    {0, 4, NET_F_CTRL_RX_EXTRA,       1,  set_rx_mode         }, /* NOUNI */
    {0, 5, NET_F_CTRL_RX_EXTRA,       1,  set_rx_mode         }, /* NOBCAST */
    {1, 0, NET_F_CTRL_RX,             -1, set_mac_tables      }, /* TABLE_SET */
    {1, 1, NET_F_CTRL_MAC_ADDR,       6,  set_mac             }, /* ADDR_SET */
    {2, 0, NET_F_CTRL_VLAN,           2,  set_vlan            }, /* ADD */
    {2, 1, NET_F_CTRL_VLAN,           2,  set_vlan            }, /* DEL */
    {3, 0, NET_F_GUEST_ANNOUNCE,      0,  acknowledge_announce}, /* ACK */
    {4, 0, NET_F_MQ,                  2,  set_pairs           }, /* VQ_PAIRS_SET */
    {5, 0, NET_F_CTRL_GUEST_OFFLOADS, 8,  set_offloads        }, /* SET */
};

static uint8_t execute(struct virtio_net *net, const struct virtq_chain *chain)
{
    uint8_t head[COMMAND_BYTES];

    if (virtq_chain_read(chain, 0, head, sizeof(head)) != sizeof(head))
        return CTRL_ERR;
    const struct command command = {.chain = chain,
                                    .class = head[0],
                                    .number = head[1],
                                    .data_len = chain->out_len - sizeof(head)};
    for (size_t i = 0; i < ARRAY_LEN(ctrl_commands); i++) {
        const struct ctrl_command *c = &ctrl_commands[i];
        if (c->class != command.class || c->number != command.number)
            continue;
        if (!virtio_has_feature(&net->dev, c->feature) ||
            (c->data_len >= 0 && (uint64_t)c->data_len != command.data_len))
            return CTRL_ERR;
        return c->fn(net, &command);
    }
    return CTRL_ERR;
}

void net_ctrl_run(struct virtio_net *net, struct virtq *vq)
{
    struct virtq_chain chain;
    unsigned served = 0;

    virtq_disable_kick(vq);
    for (unsigned n = 0;; n++) {
        if (n == TURN_COMMANDS) {
            virtio_queue_kick_later(&net->dev, vq);
            break;
        }
        int ret = virtq_pop(vq, &chain, net->iov, VIRTIO_NET_QUEUE_SIZE);
        if (ret == 0) {
            if (!virtq_enable_kick(vq))
                break;
            virtq_disable_kick(vq);
            continue;
        }
        if (ret < 0 || chain.in_len < 1) {
            if (ret > 0)
                virtq_push(vq, &chain, 0);
            virtio_needs_reset(&net->dev, "a control command is not sound");
            break;
        }
        uint8_t ack = execute(net, &chain);
        virtq_chain_write(&chain, 0, &ack, sizeof(ack));
        virtq_push(vq, &chain, sizeof(ack));
        served++;
    }
    if (served)
        virtio_queue_notify(&net->dev, vq);
}
