/* SPDX-License-Identifier: Apache-2.0 */
#include "block/block.h"

#include <errno.h>

#include "base/err.h"
#include "base/tap.h"
#include "base/units.h"

/* A driver that counts what passes the checks, and completes it at once through the loop. */
struct stub {
    struct block_dev dev;
    unsigned submitted, closed;
};

static int stub_attach(struct block_dev *dev, struct loop *loop, struct err *err)
{
    (void)dev, (void)loop, (void)err;
    return 0;
}

static void stub_submit(struct block_dev *dev, struct block_request *req)
{
    CONTAINER_OF(dev, struct stub, dev)->submitted++;
    block_complete_later(dev, req, 0);
}

static void stub_close(struct block_dev *dev)
{
    CONTAINER_OF(dev, struct stub, dev)->closed++;
}

static const struct block_driver stub_driver = {
    .name = "stub", .attach = stub_attach, .submit = stub_submit, .close = stub_close};

struct test_request {
    struct block_request req;
    struct loop *loop;
    struct block_dev *resubmit; /* submit again from done, once */
    struct block_dev *close;    /* close from done */
    unsigned completions;
    int res;
    unsigned order;
};

static unsigned next_order;

static void done(struct block_request *req, int res)
{
    struct test_request *t = CONTAINER_OF(req, struct test_request, req);
    t->res = res;
    t->order = next_order++;
    t->completions++;
    if (t->resubmit) {
        struct block_dev *dev = t->resubmit;
        t->resubmit = NULL;
        block_submit(dev, req);
        return;
    }
    if (t->close)
        block_close(t->close);
    loop_stop(t->loop);
}

static uint8_t buffer[8192];

/* Result of one request; 1: it completed inside submit, or not exactly once. */
static int submit(struct stub *stub, enum block_op op, uint64_t offset, uint64_t len,
                  const struct iovec *iov, unsigned iov_count)
{
    struct test_request t = {.loop = stub->dev.loop};
    t.req = (struct block_request){.op = op,
                                   .offset_bytes = offset,
                                   .len_bytes = len,
                                   .iov = iov,
                                   .iov_count = iov_count,
                                   .done = done};
    block_submit(&stub->dev, &t.req);
    if (t.completions)
        return 1;
    loop_run(stub->dev.loop);
    return t.completions == 1 ? t.res : 1;
}

static int submit_buffer(struct stub *stub, enum block_op op, uint64_t offset, uint64_t len)
{
    struct iovec iov = {buffer, len};
    return submit(stub, op, offset, len, &iov, 1);
}

static void test_checks(struct stub *stub)
{
    const uint64_t size = stub->dev.info.size_bytes;
    is_int(submit_buffer(stub, BLOCK_READ, 0, 512), 0, "a read in range passes");
    is_int(submit_buffer(stub, BLOCK_WRITE, size - 512, 512), 0, "the last block can be written");
    is_int(submit_buffer(stub, BLOCK_FLUSH, 0, 0), 0, "flush passes");
    is_int(submit(stub, BLOCK_DISCARD, 0, size, NULL, 0), 0, "discard of all passes");
    is_int(submit(stub, BLOCK_WRITE_ZEROES, 512, 512, NULL, 0), 0, "write zeroes passes");
    is_int(stub->submitted, 5, "all of these came to the driver");

    is_int(submit_buffer(stub, BLOCK_READ, size, 512), -EINVAL, "read at the end");
    is_int(submit_buffer(stub, BLOCK_READ, size - 512, 1024), -EINVAL, "read across the end");
    is_int(submit_buffer(stub, BLOCK_READ, UINT64_MAX - 511, 512), -EINVAL, "offset overflows");
    is_int(submit(stub, BLOCK_DISCARD, 512, UINT64_MAX - 511, NULL, 0), -EINVAL, "len overflows");
    is_int(submit_buffer(stub, BLOCK_READ, 256, 512), -EINVAL, "misaligned offset");
    is_int(submit_buffer(stub, BLOCK_READ, 0, 100), -EINVAL, "misaligned length");
    is_int(submit_buffer(stub, (enum block_op)99, 0, 512), -EINVAL, "unknown operation");

    struct iovec iov[3] = {
        {buffer, 512           },
        {buffer, 512           },
        {buffer, SIZE_MAX - 511}
    };
    is_int(submit(stub, BLOCK_READ, 0, 1024, iov, 1), -EINVAL, "buffers too short");
    is_int(submit(stub, BLOCK_READ, 0, 512, iov, 2), -EINVAL, "buffers too long");
    is_int(submit(stub, BLOCK_READ, 0, 512, iov, 3), -EINVAL, "buffers whose sum overflows");
    is_int(submit(stub, BLOCK_READ, 0, 0, iov, 0), 0, "nothing to read is no error");
    is_int(stub->submitted, 5, "none of these came to the driver");

    stub->dev.info.discard_granularity_bytes = 0;
    is_int(submit(stub, BLOCK_DISCARD, 0, 512, NULL, 0), -ENOTSUP, "discard without support");
    stub->dev.info.read_only = true;
    is_int(submit_buffer(stub, BLOCK_WRITE, 0, 512), -EROFS, "write to a read-only disk");
    is_int(submit(stub, BLOCK_DISCARD, 0, 512, NULL, 0), -EROFS, "discard on it");
    is_int(submit(stub, BLOCK_WRITE_ZEROES, 0, 512, NULL, 0), -EROFS, "zeroes on it");
    is_int(submit_buffer(stub, BLOCK_FLUSH, 0, 0), 0, "flush on it is nothing");
    is_int(stub->submitted, 5, "none of these came to the driver either");
    is_int(submit_buffer(stub, BLOCK_READ, 0, 512), 0, "it can be read");
    stub->dev.info.read_only = false;
}

static void test_order(struct stub *stub)
{
    struct iovec iov = {buffer, 512};
    struct test_request t[3] = {0};
    next_order = 0;
    for (unsigned i = 0; i < ARRAY_LEN(t); i++) {
        t[i].loop = stub->dev.loop;
        t[i].req = (struct block_request){
            .op = BLOCK_READ, .len_bytes = 512, .iov = &iov, .iov_count = 1, .done = done};
        block_submit(&stub->dev, &t[i].req);
    }
    t[0].resubmit = &stub->dev;
    loop_run(stub->dev.loop);
    loop_run(stub->dev.loop);
    is_int(t[1].order, 1, "the second completes second");
    is_int(t[2].order, 2, "the third completes third");
    is_int(t[0].completions, 2, "what done submitted completes too");
    is_int(t[0].order, 3, "after the others");

    struct test_request last = {.loop = stub->dev.loop, .close = &stub->dev};
    last.req = (struct block_request){.op = BLOCK_FLUSH, .done = done};
    block_submit(&stub->dev, &last.req);
    loop_run(stub->dev.loop);
    is_int(stub->closed, 1, "done may close the disk");
}

int main(void)
{
    struct err err = ERR_INIT;
    struct loop *loop;
    if (loop_new(&loop, 0, &err) < 0) {
        ok(false, err.text);
        return tap_done();
    }
    struct stub stub = {
        .dev = {.driver = &stub_driver,
                .info = {.size_bytes = 64 * KIB,
                         .logical_block_bytes = 512,
                         .physical_block_bytes = 4096,
                         .discard_granularity_bytes = 4096,
                         .max_discard_bytes = UINT64_MAX}}
    };
    is_int(block_attach(&stub.dev, loop, &err), 0, "attach");
    is_int(block_attach(&stub.dev, loop, &err), -EBUSY, "attach again is refused");
    test_checks(&stub);
    test_order(&stub);
    loop_free(loop);
    return tap_done();
}
