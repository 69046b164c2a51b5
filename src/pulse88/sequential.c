/* Loops in which every step needs the one before it, as sequential.py says them. In Python they are a third of the time
   that it takes to read a MIDI file and to write it as ids. Nothing here allocates, and nothing reads past what it is
   given. */

#include <stdint.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { VERSION = 1, LONGEST_DELTA = 4 };

EXPORT int64_t p88_sequential_version(void) { return VERSION; }

static int data_bytes(uint8_t status) { return status >= 0xF0 ? -1 : (status & 0xE0) == 0xC0 ? 1 : 2; }

/* The first bytes of the events of fixed size from `at` on, into `starts`, while status bytes or running ones of two data
   bytes are in force: up to the first event of another size, or the first that begins at `bound` or behind it. An event
   may end behind the bound. Returns how many, and leaves where the next one begins in `next`. */
EXPORT int64_t p88_walk(const uint8_t *data, int64_t size, int64_t at, int64_t bound, int64_t *starts, int64_t *next) {
    int64_t count = 0;
    while (at < bound) {
        int64_t here = at;
        int delta = 1;
        while (delta <= LONGEST_DELTA && here < size && data[here] >= 0x80) {
            delta++;
            here++;
        }
        if (delta > LONGEST_DELTA) break;
        const uint8_t status = here + 1 < size ? data[here + 1] : 0; /* What lies behind the end counts as zeros. */
        if (status >= 0x80 && data_bytes(status) != 2) break;
        starts[count++] = at;
        at = here + 1 + (status >= 0x80 ? 3 : 2);
    }
    *next = at;
    return count;
}

/* Delta times summed over all events, and of every channel message its event, status (running status resolved) and data
   bytes. `data` has 8 bytes more behind the last event's first one. Returns the number of messages. */
EXPORT int64_t p88_decode(const uint8_t *data, const int64_t *starts, int64_t count, int64_t *clock, int64_t *event,
                          uint8_t *status, uint8_t *data1, uint8_t *data2) {
    int64_t time = 0, messages = 0;
    uint8_t running = 0;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *byte = data + starts[i];
        uint64_t delta = 0;
        for (int k = 0; k < LONGEST_DELTA; k++) {
            delta = delta << 7 | (*byte & 0x7F);
            if (*byte++ < 0x80) break;
        }
        time += (int64_t)delta;
        clock[i] = time;
        const uint8_t found = *byte;
        if (i == 0) running = found;
        if (found >= 0xF0) continue;
        if (found >= 0x80) {
            running = found;
            byte++;
        }
        event[messages] = i;
        status[messages] = running;
        data1[messages] = byte[0];
        data2[messages] = (running & 0xE0) == 0xC0 ? 0 : byte[1];
        messages++;
    }
    return messages;
}

/* Bins whose decoded clock stays near the true one: see _carried of tokenizer.py. `chosen` holds the nearest bins at
   first. Sums of two numbers only, so that they round as Python's do. */
EXPORT void p88_carry(const double *delta, const double *error, const double *bend, int64_t count, const double *bins,
                      int64_t bin_count, double tolerated, int64_t *chosen) {
    double drift = 0.0;
    for (int64_t i = 0; i < count; i++) {
        const double before = drift;
        drift = before + error[i];
        if (-tolerated < drift && drift < tolerated) continue;
        const int64_t step = drift > 0 ? -1 : 1;
        int64_t candidate = chosen[i] + step;
        while (candidate >= 0 && candidate < bin_count) {
            const double bent = bins[candidate] - delta[i];
            const double after = before + bent;
            const double size = bent < 0 ? -bent : bent;
            const double off = after < 0 ? -after : after, was_off = drift < 0 ? -drift : drift;
            if (size > bend[i] || off >= was_off) break;
            drift = after;
            chosen[i] = candidate;
            candidate += step;
        }
    }
}
