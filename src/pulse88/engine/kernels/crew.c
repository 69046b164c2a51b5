/* See crew.h. A helper waits on a condition and never spins; on Windows there are none. */
#include "crew.h"

#include <stdlib.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if defined(_WIN32)

EXPORT Crew *p88_crew_open(int64_t members) {
    (void)members;
    return NULL;
}
EXPORT void p88_crew_close(Crew *crew) { (void)crew; }
int64_t p88_crew_size(const Crew *crew) {
    (void)crew;
    return 1;
}
Crew *p88_crew_take(Crew *crew) { return crew; }
void p88_crew_give(Crew *crew) { (void)crew; }
void p88_crew_share(Crew *crew, Task *task, const void *job, int64_t count) {
    (void)crew;
    for (int64_t i = 0; i < count; i++) task(job, i, 0);
}

#else

#include <pthread.h>
#include <unistd.h>

struct Crew {
    pthread_mutex_t lock;
    pthread_cond_t begun, ended;
    pid_t owner;
    int busy, closing;
    Task *task;
    const void *job;
    int64_t next, count; /* tasks */
    int64_t turn;        /* jobs so far */
    int64_t working;     /* helpers at the present job */
    int64_t helpers;
    pthread_t threads[LARGEST_CREW];
};

/* Takes tasks until none is left. The lock is held before and after. */
static void work(Crew *crew, int64_t member) {
    Task *const task = crew->task;
    const void *const job = crew->job;
    while (crew->next < crew->count) {
        const int64_t mine = crew->next++;
        pthread_mutex_unlock(&crew->lock);
        task(job, mine, member);
        pthread_mutex_lock(&crew->lock);
    }
}

typedef struct {
    Crew *crew;
    int64_t member;
} Place;

static void *help(void *argument) {
    const Place place = *(Place *)argument;
    Crew *const crew = place.crew;
    free(argument);
    pthread_mutex_lock(&crew->lock);
    for (int64_t seen = 0; !crew->closing;) {
        if (crew->turn == seen) {
            pthread_cond_wait(&crew->begun, &crew->lock);
            continue;
        }
        seen = crew->turn;
        crew->working++;
        work(crew, place.member);
        if (--crew->working == 0) pthread_cond_signal(&crew->ended);
    }
    pthread_mutex_unlock(&crew->lock);
    return NULL;
}

EXPORT void p88_crew_close(Crew *crew) {
    if (!crew || crew->owner != getpid()) return; /* a forked process has no helpers to end */
    pthread_mutex_lock(&crew->lock);
    crew->closing = 1;
    pthread_cond_broadcast(&crew->begun);
    pthread_mutex_unlock(&crew->lock);
    for (int64_t i = 0; i < crew->helpers; i++) pthread_join(crew->threads[i], NULL);
    pthread_cond_destroy(&crew->begun);
    pthread_cond_destroy(&crew->ended);
    pthread_mutex_destroy(&crew->lock);
    free(crew);
}

/* `members` threads, the caller's among them; NULL if the system refuses them. */
EXPORT Crew *p88_crew_open(int64_t members) {
    if (members < 2 || members > LARGEST_CREW) return NULL;
    Crew *crew = calloc(1, sizeof *crew);
    if (!crew) return NULL;
    crew->owner = getpid();
    if (pthread_mutex_init(&crew->lock, NULL) || pthread_cond_init(&crew->begun, NULL) ||
        pthread_cond_init(&crew->ended, NULL)) {
        free(crew);
        return NULL;
    }
    for (int64_t i = 1; i < members; i++) {
        Place *place = malloc(sizeof *place);
        if (place) *place = (Place){crew, i};
        if (!place || pthread_create(&crew->threads[crew->helpers], NULL, help, place)) {
            free(place);
            p88_crew_close(crew);
            return NULL;
        }
        crew->helpers++;
    }
    return crew;
}

int64_t p88_crew_size(const Crew *crew) { return crew->helpers + 1; }

Crew *p88_crew_take(Crew *crew) {
    if (!crew || crew->owner != getpid()) return NULL;
    pthread_mutex_lock(&crew->lock);
    const int mine = !crew->busy;
    crew->busy = 1;
    pthread_mutex_unlock(&crew->lock);
    return mine ? crew : NULL;
}

void p88_crew_give(Crew *crew) {
    if (!crew) return;
    pthread_mutex_lock(&crew->lock);
    crew->busy = 0;
    pthread_mutex_unlock(&crew->lock);
}

void p88_crew_share(Crew *crew, Task *task, const void *job, int64_t count) {
    if (!crew || count < 2) {
        for (int64_t i = 0; i < count; i++) task(job, i, 0);
        return;
    }
    pthread_mutex_lock(&crew->lock);
    crew->task = task;
    crew->job = job;
    crew->next = 0;
    crew->count = count;
    crew->turn++;
    pthread_cond_broadcast(&crew->begun);
    work(crew, 0);
    while (crew->working) pthread_cond_wait(&crew->ended, &crew->lock);
    pthread_mutex_unlock(&crew->lock);
}

#endif
