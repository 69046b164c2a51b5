/* Loops in which every step needs the one before it, as sequential.py says them. Nothing here allocates, and nothing
   reads or writes past what it is given. Floating-point results are those of one addition or subtraction, so that they
   round as numpy's do, whatever the compiler fuses. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { VERSION = 4, LONGEST_DELTA = 4, PITCHES = 128, FEW = 64, MOST_LEGAL = 256 };

EXPORT int64_t p88_sequential_version(void) { return VERSION; }

static int data_bytes(uint8_t status) { return status >= 0xF0 ? -1 : (status & 0xE0) == 0xC0 ? 1 : 2; }

/* The first bytes of the events of fixed size from `at` on, into `starts`, while status bytes or running ones of two
   data bytes are in force: up to the first event of another size, or the first that begins at `bound` or behind it. An event
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

/* The byte behind a number of variable length from `at` on, of 4 bytes at most before `bound`, or -1. */
static int64_t variable_length(const uint8_t *data, int64_t at, int64_t bound, int64_t *value) {
    *value = 0;
    for (int k = 0; k < LONGEST_DELTA && at < bound; k++) {
        *value = *value << 7 | (data[at] & 0x7F);
        if (data[at++] < 0x80) return at;
    }
    return -1;
}

/* A whole track of `data` from `start` to `bound`, of which everything makes sense up to its end-of-track event, which
   ends at the bound: the first bytes of its events into `starts`, and of its meta events of the kinds in `kept` the
   event, kind, first byte of the data and byte behind them into `metas`, so many into `meta_count`. Returns the number
   of events, or -1 if anything is odd: then Python finds out what. `starts` has room for bound - start, `metas` for
   (bound - start) / 4 rows, 4 bytes being the least that a meta event takes. */
EXPORT int64_t p88_track(const uint8_t *data, int64_t start, int64_t bound, const uint8_t *kept, int64_t *starts,
                         int64_t *metas, int64_t *meta_count) {
    enum { META = 0xFF, END_OF_TRACK = 0x2F };
    int64_t count = 0, at = start, value;
    int running = 0; /* data bytes of the status in force; 0 before the first */
    *meta_count = 0;
    while (at < bound) {
        int64_t here = variable_length(data, at, bound, &value);
        if (here < 0 || here >= bound) return -1;
        const uint8_t status = data[here];
        int64_t stop;
        int kind = -1;
        if (status >= 0xF0) {
            if (status == META) {
                if (++here >= bound) return -1;
                kind = data[here];
            } else if (status != 0xF0 && status != 0xF7)
                return -1;
            const int64_t first = variable_length(data, here + 1, bound, &value);
            if (first < 0 || value > bound - first) return -1;
            stop = first + value;
            if (kind >= 0 && kept[kind]) {
                int64_t *row = metas + 4 * (*meta_count)++;
                row[0] = count;
                row[1] = kind;
                row[2] = first;
                row[3] = stop;
            }
        } else if (status >= 0x80) {
            running = data_bytes(status);
            stop = here + 1 + running;
        } else if (running)
            stop = here + running;
        else
            return -1;
        if (stop > bound) return -1;
        starts[count++] = at;
        at = stop;
        if (kind == END_OF_TRACK) return at == bound ? count : -1;
    }
    return -1;
}

/* Of `tracks` tracks, one behind the other with `counts` events each: delta times summed from each track's start, and
   of every channel message its track, tick, status (running status resolved) and data bytes; of every track the last
   tick. `data` has 8 bytes more behind the last event's first one. Returns the number of messages. */
EXPORT int64_t p88_decode(const uint8_t *data, const int64_t *starts, const int64_t *counts, int64_t tracks,
                          int64_t *clock, int64_t *track, int64_t *tick, uint8_t *status, uint8_t *data1,
                          uint8_t *data2, int64_t *last) {
    int64_t messages = 0, event = 0;
    uint8_t running = 0;
    for (int64_t t = 0; t < tracks; t++) {
        int64_t time = 0;
        for (int64_t end = event + counts[t]; event < end; event++) {
            const uint8_t *byte = data + starts[event];
            uint64_t delta = 0;
            for (int k = 0; k < LONGEST_DELTA; k++) {
                delta = delta << 7 | (*byte & 0x7F);
                if (*byte++ < 0x80) break;
            }
            time += (int64_t)delta;
            clock[event] = time;
            const uint8_t found = *byte;
            if (event == 0) running = found;
            if (found >= 0xF0) continue;
            if (found >= 0x80) {
                running = found;
                byte++;
            }
            track[messages] = t;
            tick[messages] = time;
            status[messages] = running;
            data1[messages] = byte[0];
            data2[messages] = (running & 0xE0) == 0xC0 ? 0 : byte[1];
            messages++;
        }
        last[t] = time;
    }
    return messages;
}

/* Strikes and the ticks at which they end, where every key of every lane is struck and let go in turn; -1 otherwise.
   `open` is room for 128 numbers a lane, `strike` and `release` for half as many as there are messages. Returns the number of strikes, in the order of their events. */
EXPORT int64_t p88_pairs(const uint8_t *status, const uint8_t *data1, const uint8_t *data2, const int64_t *lane,
                         const int64_t *tick, int64_t count, int64_t lanes, int32_t *open, int64_t *strike,
                         int64_t *release) {
    int64_t strikes = 0, sounding = 0;
    memset(open, 0xFF, (size_t)lanes * PITCHES * sizeof *open); /* -1 */
    for (int64_t i = 0; i < count; i++) {
        const uint8_t kind = status[i] & 0xF0;
        if (kind != 0x80 && kind != 0x90) continue;
        int32_t *const key = open + lane[i] * PITCHES + (data1[i] & 0x7F);
        if (kind == 0x90 && data2[i] > 0) {
            if (*key >= 0 || strikes == count / 2) return -1;
            *key = (int32_t)strikes;
            strike[strikes++] = i;
            sounding++;
        } else {
            if (*key < 0) return -1;
            release[*key] = tick[i];
            *key = -1;
            sounding--;
        }
    }
    return sounding ? -1 : strikes;
}

/* Puts an order by onset right among the notes of one onset: by pitch, duration, velocity and part. 0 if more than FEW
   notes begin together, which are left to Python. */
EXPORT int64_t p88_order(const double *onset, const double *duration, const uint8_t *pitch, const uint8_t *velocity,
                         const uint8_t *part, int64_t count, int64_t *order) {
    for (int64_t begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && onset[order[end]] == onset[order[begin]];) end++;
        if (end - begin > FEW) return 0;
        for (int64_t i = begin + 1; i < end; i++) {
            const int64_t note = order[i];
            int64_t at = i;
            for (; at > begin; at--) {
                const int64_t other = order[at - 1];
                if (pitch[other] != pitch[note]) {
                    if (pitch[other] < pitch[note]) break;
                } else if (duration[other] != duration[note]) {
                    if (duration[other] < duration[note]) break;
                } else if (velocity[other] != velocity[note]) {
                    if (velocity[other] < velocity[note]) break;
                } else if (part[other] <= part[note])
                    break;
                order[at] = other;
            }
            order[at] = note;
        }
    }
    return 1;
}

/* How many of the ascending `values` are not above `key`; `guess` is near it, as a rule. */
static int64_t not_above(const double *values, int64_t count, double key, int64_t guess) {
    for (int k = 0; k < 8; k++) {
        if (guess < count && values[guess] <= key)
            guess++;
        else if (guess > 0 && values[guess - 1] > key)
            guess--;
        else
            return guess;
    }
    int64_t low = 0;
    while (low < count) {
        const int64_t middle = low + (count - low) / 2;
        if (values[middle] <= key)
            low = middle + 1;
        else
            count = middle;
    }
    return low;
}

/* Sounding durations: see Performance._sounding. `stops` of the spans in which one part's pedal is down, and their
   `starts`, are room for `changes` + 1 numbers each. */
EXPORT void p88_sounding(const double *onset, const double *duration, const uint8_t *pitch, const uint8_t *part,
                         int64_t count, const double *time, const uint8_t *value, const uint8_t *pedal_part,
                         int64_t changes, int64_t down_from, double *starts, double *stops, double *sounding) {
    uint8_t has_pedal[256] = {0};
    double piece_end = time[changes - 1];
    for (int64_t i = 0; i < count; i++) {
        const double end = onset[i] + duration[i];
        sounding[i] = end;
        if (end > piece_end) piece_end = end;
    }
    for (int64_t i = 0; i < changes; i++) has_pedal[pedal_part[i]] = 1;
    for (int p = 0; p < 256; p++) {
        if (!has_pedal[p]) continue;
        int64_t spans = 0;
        int is_down = 0;
        for (int64_t i = 0; i < changes; i++) {
            if (pedal_part[i] != p || (value[i] >= down_from) == is_down) continue;
            is_down = !is_down;
            if (is_down)
                starts[spans] = time[i];
            else
                stops[spans++] = time[i];
        }
        if (is_down) stops[spans++] = piece_end;
        for (int64_t i = 0, begun = 0; i < count && spans; i++) {
            if (part[i] != p) continue;
            begun = not_above(starts, spans, sounding[i], begun);
            if (begun > 0 && sounding[i] < stops[begun - 1]) sounding[i] = stops[begun - 1];
        }
    }
    /* No longer than up to the next later strike of the key, which is known from the end on. */
    double struck[PITCHES], after[PITCHES];
    for (int k = 0; k < PITCHES; k++) struck[k] = after[k] = INFINITY;
    for (int64_t i = count - 1; i >= 0; i--) {
        const int key = pitch[i] & 0x7F;
        if (onset[i] < struck[key]) {
            after[key] = struck[key];
            struck[key] = onset[i];
        }
        double end = sounding[i] < after[key] ? sounding[i] : after[key];
        const double key_end = onset[i] + duration[i];
        if (key_end > end) end = key_end;
        const double length = end - onset[i];
        sounding[i] = length > duration[i] ? length : duration[i];
    }
}

/* The pitches with every chord sorted: a note less than `together` seconds behind the one before it is of its chord. */
EXPORT void p88_chords(const double *onset, const uint8_t *pitch, int64_t count, double together, uint8_t *sorted) {
    for (int64_t begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && onset[end] - onset[end - 1] < together;) end++;
        if (end - begin <= FEW) {
            for (int64_t i = begin; i < end; i++) {
                int64_t to = i;
                for (; to > begin && sorted[to - 1] > pitch[i]; to--) sorted[to] = sorted[to - 1];
                sorted[to] = pitch[i];
            }
            continue;
        }
        int64_t of_pitch[PITCHES] = {0}, at = begin;
        for (int64_t i = begin; i < end; i++) of_pitch[pitch[i] & 0x7F]++;
        for (int key = 0; key < PITCHES; key++)
            for (; of_pitch[key]; of_pitch[key]--) sorted[at++] = (uint8_t)key;
    }
}

static uint64_t mixed(uint64_t hash) {
    hash = (hash ^ (hash >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    hash = (hash ^ (hash >> 27)) * UINT64_C(0x94D049BB133111EB);
    return hash ^ (hash >> 31);
}

/* Hashes of all runs of `length` intervals (11 at most) that are `highest` at most and have `least_kinds` different
   intervals, as duplicates.shingles has them, into `hashes`, which has room for count - length. Returns how many. */
EXPORT int64_t p88_shingles(const uint8_t *pitch, int64_t count, int64_t length, uint64_t base, uint32_t highest,
                            int64_t least_kinds, uint32_t *hashes) {
    uint64_t hash = 0, leaving = 1;
    int64_t found = 0;
    for (int64_t k = 0; k < length; k++) leaving *= base;
    for (int64_t i = 0; i + 1 < count; i++) {
        hash = hash * base + (uint64_t)(pitch[i + 1] - pitch[i] + 128);
        if (i >= length) hash -= leaving * (uint64_t)(pitch[i - length + 1] - pitch[i - length] + 128);
        if (i + 1 < length) continue;
        const uint32_t own = (uint32_t)(mixed(hash) >> 32);
        if (own > highest) continue;
        uint64_t kinds = 0;
        for (int64_t k = i + 1 - length; k <= i; k++) kinds |= UINT64_C(1) << ((pitch[k + 1] - pitch[k]) & 63);
        for (int64_t k = 1; k < least_kinds; k++) kinds &= kinds - 1;
        if (kinds) hashes[found++] = own;
    }
    return found;
}

/* Ticks to seconds: see midi_file._Clock. Tempos change at `starts`, the first of them no later than any tick, where
   `passed` microseconds times the division are over. */
EXPORT void p88_seconds(const int64_t *ticks, int64_t count, const int64_t *starts, const int64_t *microseconds,
                        const double *passed, int64_t tempos, double unit, double *seconds) {
    int64_t at = 0;
    for (int64_t i = 0; i < count; i++) {
        const int64_t tick = ticks[i];
        if (starts[at] > tick || (at + 1 < tempos && starts[at + 1] <= tick)) {
            int64_t low = 0, high = tempos;
            while (high - low > 1) {
                const int64_t middle = low + (high - low) / 2;
                if (starts[middle] <= tick)
                    low = middle;
                else
                    high = middle;
            }
            at = low;
        }
        volatile double since = (double)(tick - starts[at]) * (double)microseconds[at]; /* rounded before it is added */
        seconds[i] = (passed[at] + since) / unit;
    }
}

/* Of each time, how many of the ascending `midpoints` are not above it; all of them for what is no number, as numpy. */
EXPORT void p88_nearest(const double *seconds, const double *midpoints, int64_t count, int64_t bins, int64_t *nearest) {
    for (int64_t i = 0; i < count; i++) {
        int64_t found = 0;
        for (int64_t k = 0; k < bins; k++) found += !(midpoints[k] > seconds[i]);
        nearest[i] = found;
    }
}

/* Sorts every chord by pitch and, of one key, the longer notes first, where a chord is a note and those of bin 0 behind
   it; and tells which note is its key's first in its chord. 0 if a chord has more than FEW notes, which are left to
   Python. */
EXPORT int64_t p88_chord_order(const int64_t *bins, const uint8_t *pitch, const double *duration, int64_t count,
                               int64_t *order, uint8_t *is_strike) {
    for (int64_t begin = 0, end; begin < count; begin = end) {
        for (end = begin + 1; end < count && !bins[end];) end++;
        if (end - begin > FEW) return 0;
        for (int64_t i = begin; i < end; i++) {
            int64_t to = i;
            for (; to > begin; to--) {
                const int64_t other = order[to - 1];
                if (pitch[other] < pitch[i] || (pitch[other] == pitch[i] && duration[other] >= duration[i])) break;
                order[to] = other;
            }
            order[to] = i;
        }
        for (int64_t i = begin; i < end; i++) is_strike[i] = i == begin || pitch[order[i]] != pitch[order[i - 1]];
    }
    return 1;
}

/* Bins whose decoded clock stays near the true one: see _carried of tokenizer.py. `chosen` holds the nearest bins at
   first. A delta of `long_gap` or more may be bent by its `long_bend`, another by its `small_bend` or `short_step`. */
EXPORT void p88_carry(const double *delta, int64_t count, const double *bins, int64_t bin_count, double tolerated,
                      double long_gap, double long_bend, double small_bend, double short_step, int64_t *chosen) {
    double drift = 0.0;
    const double longest = bins[bin_count - 1];
    for (int64_t i = 0; i < count; i++) {
        const double before = drift;
        if (delta[i] <= longest) drift = before + (bins[chosen[i]] - delta[i]);
        if (-tolerated < drift && drift < tolerated) continue;
        double most = delta[i] >= long_gap ? long_bend * delta[i] : small_bend * delta[i];
        if (delta[i] < long_gap && most < short_step) most = short_step;
        if (delta[i] > longest) most = 0.0;
        const int64_t step = drift > 0 ? -1 : 1;
        int64_t candidate = chosen[i] + step;
        while (candidate >= 0 && candidate < bin_count) {
            const double bent = bins[candidate] - delta[i];
            const double after = before + bent;
            const double size = bent < 0 ? -bent : bent;
            const double off = after < 0 ? -after : after, was_off = drift < 0 ? -drift : drift;
            if (size > most || off >= was_off) break;
            drift = after;
            chosen[i] = candidate;
            candidate += step;
        }
    }
}

/* A sum in the order in which numpy takes it. */
static double sum_of(const double *x, int64_t count) {
    if (count > 128) {
        const int64_t half = count / 2 - count / 2 % 8;
        return sum_of(x, half) + sum_of(x + half, count - half);
    }
    double sum = 0.0, part[8];
    int64_t i = 0;
    if (count >= 8) {
        memcpy(part, x, sizeof part);
        for (i = 8; i + 8 <= count; i += 8)
            for (int k = 0; k < 8; k++) part[k] += x[i + k];
        sum = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    }
    for (; i < count; i++) sum += x[i];
    return sum;
}

/* Which of `count` ids is picked, as sampling.py says; weights are the exponentials of their logits less the largest.
   -1 if there are more than it has room for, or none. */
EXPORT int64_t p88_pick(const double *logits, const double *weights, int64_t count, int64_t top_k, double top_p,
                        double min_p, double uniform) {
    int64_t order[MOST_LEGAL];
    double kept[MOST_LEGAL], cumulated[MOST_LEGAL];
    if (count < 1 || count > MOST_LEGAL) return -1;
    for (int64_t i = 0; i < count; i++) { /* The likeliest first, and of equals the first. */
        int64_t to = i;
        for (; to > 0 && logits[order[to - 1]] < logits[i]; to--) order[to] = order[to - 1];
        order[to] = i;
    }
    for (int64_t i = 0; i < count; i++) kept[i] = weights[order[i]];
    if (0 < top_k && top_k < count) memset(kept + top_k, 0, (size_t)(count - top_k) * sizeof *kept);
    if (top_p < 1) {
        const double whole = sum_of(kept, count);
        double passed = 0.0;
        for (int64_t i = 0; i < count; i++) {
            passed += kept[i];
            if ((passed - kept[i]) / whole >= top_p) kept[i] = 0.0;
        }
    }
    const double least = min_p * kept[0];
    for (int64_t i = 0; min_p > 0 && i < count; i++)
        if (kept[i] < least) kept[i] = 0.0;
    const double left = sum_of(kept, count);
    for (int64_t i = 0; i < count; i++) cumulated[order[i]] = kept[i] / left;
    for (int64_t i = 1; i < count; i++) cumulated[i] += cumulated[i - 1];
    const double wanted = uniform * cumulated[count - 1];
    int64_t index = 0;
    while (index < count && cumulated[index] <= wanted) index++;
    return index;
}
