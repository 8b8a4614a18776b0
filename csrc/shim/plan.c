/* Decodes a plan. Input is what our own supervisor compiled, yet every length is checked against
 * what remains: the message of CVE-2021-43784 also came from the runtime itself. */
#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "shim.h"

struct reader {
    char *at;
    char *end;
};

struct signature {
    uint16_t code;
    uint16_t is_child;
    const char *kinds;
};

static const struct signature signatures[] = {
#define ROW(name, code, is_child, kinds) {code, is_child, kinds},
    PLAN_OPS(ROW)
#undef ROW
};

static const struct signature *find_signature(uint16_t code) {
    for (size_t i = 0; i < sizeof signatures / sizeof *signatures; i++)
        if (signatures[i].code == code)
            return &signatures[i];
    return NULL;
}

bool op_is_child(uint16_t code) {
    const struct signature *signature = find_signature(code);
    return signature && signature->is_child;
}

static int take(struct reader *reader, size_t length, char **out) {
    if ((size_t)(reader->end - reader->at) < length)
        return -EBADMSG;
    *out = reader->at;
    reader->at += length;
    return 0;
}

static int take_u16(struct reader *reader, uint16_t *out) {
    char *bytes;
    if (take(reader, sizeof *out, &bytes))
        return -EBADMSG;
    memcpy(out, bytes, sizeof *out);
    return 0;
}

static int take_u32(struct reader *reader, uint32_t *out) {
    char *bytes;
    if (take(reader, sizeof *out, &bytes))
        return -EBADMSG;
    memcpy(out, bytes, sizeof *out);
    return 0;
}

static int take_u64(struct reader *reader, uint64_t *out) {
    char *bytes;
    if (take(reader, sizeof *out, &bytes))
        return -EBADMSG;
    memcpy(out, bytes, sizeof *out);
    return 0;
}

static int take_string(struct reader *reader, struct bytes *out) {
    char *bytes;
    if (take_u32(reader, &out->length) || out->length >= PLAN_MAX_BYTES ||
        take(reader, (size_t)out->length + 1, &bytes))
        return -EBADMSG;
    /* Exactly one NUL, at the end: what we check is what the kernel sees. */
    if (strnlen(bytes, (size_t)out->length + 1) != out->length)
        return -EBADMSG;
    out->data = bytes;
    return 0;
}

static int take_argument(struct reader *reader, char kind, struct plan *plan, uint32_t *listed,
                         struct argument *out) {
    char *bytes;
    uint32_t count;
    switch (kind) {
    case 'u':
        return take_u64(reader, &out->number);
    case 's':
        return take_string(reader, &out->bytes);
    case 'b':
        if (take_u32(reader, &out->bytes.length) || take(reader, out->bytes.length, &bytes))
            return -EBADMSG;
        out->bytes.data = bytes;
        return 0;
    case 'l':
        if (take_u32(reader, &count) || count >= MAX_LISTED - *listed)
            return -EBADMSG;
        out->list = plan->listed + *listed;
        out->list_length = count;
        for (uint32_t i = 0; i < count; i++) {
            struct bytes item;
            if (take_string(reader, &item))
                return -EBADMSG;
            out->list[i] = (char *)item.data;
        }
        out->list[count] = NULL;
        *listed += count + 1;
        return 0;
    }
    return -EBADMSG;
}

/* Whether nothing can follow: the program runs, or the process waits for ever. */
static bool is_last(uint16_t code) {
    return code == OP_EXEC || code == OP_EXEC_IN || code == OP_PAUSE;
}

/* Parent operations come first; what is last comes last and once. */
static int check_order(const struct plan *plan) {
    bool in_child = false;
    if (!plan->op_count || !is_last(plan->ops[plan->op_count - 1].code))
        return -EBADMSG;
    for (uint16_t i = 0; i < plan->op_count; i++) {
        bool is_child = op_is_child(plan->ops[i].code);
        if (in_child && !is_child)
            return -EBADMSG;
        in_child = is_child;
        if (is_last(plan->ops[i].code) && i + 1 != plan->op_count)
            return -EBADMSG;
    }
    return 0;
}

/* Decodes plan->buffer into plan->ops. */
int plan_decode(struct plan *plan, struct failure *failure) {
    struct reader reader = {plan->buffer, plan->buffer + plan->buffer_bytes};
    char *magic;
    uint16_t version;
    uint32_t listed = 0;

    if (take(&reader, 4, &magic) || memcmp(magic, PLAN_MAGIC, 4) || take_u16(&reader, &version) ||
        take_u16(&reader, &plan->op_count))
        return fail(failure, "decode", "plan header", EBADMSG);
    if (version != PLAN_VERSION)
        return fail(failure, "decode", "plan version", EPROTONOSUPPORT);
    if (plan->op_count > PLAN_MAX_OPS)
        return fail(failure, "decode", "number of operations", E2BIG);
    plan->ops = calloc(plan->op_count ? plan->op_count : 1, sizeof *plan->ops);
    plan->listed = calloc(MAX_LISTED, sizeof *plan->listed);
    if (!plan->ops || !plan->listed)
        return fail(failure, "calloc", "plan", ENOMEM);

    for (uint16_t i = 0; i < plan->op_count; i++) {
        struct op *op = &plan->ops[i];
        uint16_t zero;
        uint32_t length;
        failure->op_index = i;
        if (take_u16(&reader, &op->code) || take_u16(&reader, &zero) ||
            take_u32(&reader, &length) || zero)
            return fail(failure, "decode", "operation header", EBADMSG);
        failure->op_code = op->code;
        op->index = i;
        const struct signature *signature = find_signature(op->code);
        if (!signature)
            return fail(failure, "decode", "operation code", EBADMSG);
        if ((size_t)(reader.end - reader.at) < length)
            return fail(failure, "decode", "operation length", EBADMSG);
        struct reader body = {reader.at, reader.at + length};
        for (size_t k = 0; signature->kinds[k]; k++)
            if (take_argument(&body, signature->kinds[k], plan, &listed, &op->arguments[k]))
                return fail(failure, "decode", "operation argument", EBADMSG);
        if (body.at != body.end)
            return fail(failure, "decode", "bytes after the last argument", EBADMSG);
        reader.at = body.end;
    }
    if (reader.at != reader.end)
        return fail(failure, "decode", "bytes after the last operation", EBADMSG);
    if (check_order(plan))
        return fail(failure, "decode", "order of operations", EBADMSG);
    failure->op_index = 0xffff;
    failure->op_code = 0;
    return 0;
}

/* Reads and decodes the plan that the descriptor (a memfd of the supervisor's) holds. */
int plan_load(int fd, struct plan *plan, struct failure *failure) {
    struct stat info;
    if (fstat(fd, &info))
        return FAIL(failure, "fstat", "plan");
    if (info.st_size < 8 || info.st_size > PLAN_MAX_BYTES)
        return fail(failure, "decode", "plan size", EBADMSG);
    plan->buffer_bytes = (size_t)info.st_size;
    plan->buffer = malloc(plan->buffer_bytes);
    if (!plan->buffer)
        return fail(failure, "malloc", "plan", ENOMEM);
    ssize_t got = pread(fd, plan->buffer, plan->buffer_bytes, 0);
    if (got < 0)
        return FAIL(failure, "pread", "plan");
    if ((size_t)got != plan->buffer_bytes)
        return fail(failure, "pread", "plan is shorter than it was", EBADMSG);
    return plan_decode(plan, failure);
}

void plan_free(struct plan *plan) {
    free(plan->buffer);
    free(plan->listed);
    free(plan->ops);
    memset(plan, 0, sizeof *plan);
}
