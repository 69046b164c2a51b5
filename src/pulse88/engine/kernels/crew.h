/* Helpers for one forward pass: threads that sleep until there is work, and sleep again after it.
 *
 * Tasks are independent and write where no other does, so results don't depend on who does which. */
#ifndef PULSE88_CREW_H
#define PULSE88_CREW_H

#include <stdint.h>

enum { LARGEST_CREW = 64 };

typedef struct Crew Crew;

/* One task of a job; `member` is 0 for the caller's thread, 1 and on for helpers. */
typedef void Task(const void *job, int64_t task, int64_t member);

/* The crew for this call, or NULL if there is none to be had: it is busy, or was left behind by a fork. */
Crew *p88_crew_take(Crew *crew);
void p88_crew_give(Crew *crew);
/* Threads, the caller's among them. */
int64_t p88_crew_size(const Crew *crew);
/* Does the tasks 0 to count - 1 and returns when all are done. */
void p88_crew_share(Crew *crew, Task *task, const void *job, int64_t count);

#endif
