/* The shim's control messages, version 1: one SOCK_SEQPACKET datagram each, little-endian, fixed
 * size.
 *
 * fargatelite/shim.py holds the same layouts as struct formats; tests/unit/test_formats.py compiles
 * this header and compares sizes and offsets.
 */
#ifndef FARGATELITE_CONTROL_H
#define FARGATELITE_CONTROL_H

#include <stdint.h>

#define CONTROL_VERSION 1
#define CONTROL_MAGIC 0x43464c46u /* "FLFC" */

enum request_type {
    REQUEST_START = 1,    /* process, and the plan as a memfd: start it; value = start_flags */
    REQUEST_SIGNAL = 2,   /* process, value = signal */
    REQUEST_STATUS = 3,   /* answered by one EVENT_STATUS per live process and EVENT_READY */
    REQUEST_SHUTDOWN = 4, /* end the shim; refused (EVENT_REFUSED) while processes live */
    REQUEST_LOG_READ = 5, /* process, value = bytes of its log that were read since the last one */
};

/* What comes behind the plan's descriptor. */
enum start_flags {
    START_STREAMS = 1,  /* three descriptors: stdin, stdout, stderr; nothing is logged */
    START_TERMINAL = 2, /* a socket that gets the master of the plan's terminal */
};

struct request {
    uint32_t magic;
    uint16_t version;
    uint16_t type;
    uint32_t process; /* number chosen by the supervisor: containers from 0, exec from 1000 */
    uint32_t value;
};

enum event_type {
    EVENT_READY = 1,   /* carries descriptors: user namespace, network namespace */
    EVENT_STARTED = 2, /* the program runs: execve succeeded */
    EVENT_FAILED = 3,  /* the plan failed; the process is gone */
    EVENT_EXITED = 4,  /* the exit record is on disk */
    EVENT_STATUS = 5,  /* a live process, in answer to REQUEST_STATUS */
    EVENT_REFUSED = 6, /* a request that could not be carried out: error */
};

#define FAILURE_CALL_BYTES 24
#define FAILURE_OBJECT_BYTES 200

/* Which operation, which system call, on what, and its errno: all of it reaches the user. */
struct failure {
    int32_t error;     /* errno, positive */
    uint16_t op_index; /* place in the plan; 0xffff when before the first operation */
    uint16_t op_code;
    char call[FAILURE_CALL_BYTES];
    char object[FAILURE_OBJECT_BYTES];
};

#define EVENT_OUTPUT_BYTES 4096

struct event {
    uint32_t magic;
    uint16_t version;
    uint16_t type;
    uint32_t process;
    int32_t pid;            /* in the shim's pid namespace */
    uint64_t started_at_ns; /* wall clock */
    uint64_t stopped_at_ns; /* wall clock; 0 while it lives */
    uint64_t setup_ns;      /* clone3 to execve */
    int32_t wait_status;    /* as waitpid(2) gives it */
    uint32_t output_bytes;  /* captured bytes that follow this struct */
    struct failure failure;
};

#endif
