/* libFuzzer: the plan decoder (CVE-2021-43784: a length in the start message wrapped). */
#include <stdlib.h>
#include <string.h>

#include "../shim/shim.h"

int fail(struct failure *failure, const char *call, const char *object, int error) {
    (void)call;
    (void)object;
    failure->error = error;
    return -error;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct failure failure = {0};
    struct plan plan = {.buffer = malloc(size ? size : 1), .buffer_bytes = size};
    if (!plan.buffer)
        return 0;
    memcpy(plan.buffer, data, size);
    /* What the decoder took is read to its last byte, as the operations do. */
    if (plan_decode(&plan, &failure) == 0)
        for (uint16_t i = 0; i < plan.op_count; i++)
            if (op_is_child(plan.ops[i].code) && plan.ops[i].arguments[0].list)
                for (uint32_t k = 0; k < plan.ops[i].arguments[0].list_length; k++)
                    if (strlen(plan.ops[i].arguments[0].list[k]) >= size)
                        abort();
    plan_free(&plan);
    return 0;
}
