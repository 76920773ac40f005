/* Faults of files and of the clock, between a node and its C library.
 *
 * The harness compiles this file and has nodes load it before the C library. The binary under test is not changed. A page
 * of 64-bit words that both sides map is the switchboard: the harness writes the orders, this file the counts. Only files
 * in the node's own directory are touched.
 *
 * A power cut is made by undoing: what every write replaced is kept until a sync of its file has returned. On the order
 * to cut, each sector of each write that was not synced is put back or left, by chance, so that any subset may be lost
 * and writes are torn at sectors; then the process kills itself. Names in directories are not undone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* The words of the switchboard; the harness has the same list. */
enum { READY, CLOCK_US, SYNC_ERROR, SYNC_STALL_MS, WRITE_ERROR, UNDO, CUT, SEED,
       CLOCK_READS, SYNCS_FAILED, SYNCS_STALLED, WRITES_FAILED, SECTORS_LOST, SECTORS_KEPT };

#define SECTOR 512
#define FDS 65536

static volatile uint64_t *board;
static char place[4096];
static size_t place_length;
/* Per descriptor: 0 not looked at, 1 not ours, 2 ours. */
static volatile unsigned char known[FDS];

struct undo {
    struct undo *before;
    dev_t device;
    ino_t inode;
    uint64_t sync; /* syncs of any file that had begun when it was written */
    int fd;        /* a descriptor of our own */
    off_t at, size; /* where, and how long the file was */
    size_t length;
    int truncation;
    char *old;
};
static struct undo *last;
static uint64_t syncs;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static void count(int word) { __atomic_add_fetch(&board[word], 1, __ATOMIC_SEQ_CST); }

static ssize_t real_pwrite(int fd, const void *bytes, size_t length, off_t at) {
    REAL(pwrite64);
    return real(fd, bytes, length, at);
}

static int real_truncate(int fd, off_t length) {
    REAL(ftruncate64);
    return real(fd, length);
}

static int real_close(int fd) {
    REAL(close);
    return real(fd);
}

static int ours(int fd) {
    if (!board || fd < 0 || fd >= FDS) return 0;
    if (known[fd] == 0) {
        char link[64], path[4096];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        int saved = errno;
        ssize_t length = readlink(link, path, sizeof path - 1);
        errno = saved;
        known[fd] = length > (ssize_t)place_length && !memcmp(path, place, place_length)
                && path[place_length] == '/' ? 2 : 1;
    }
    return known[fd] == 2;
}

static uint64_t draw(uint64_t *state) {
    uint64_t x = (*state += 0x9e3779b97f4a7c15ull);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Sectors that keep what they hold: a later write to them was not lost. */
struct kept { dev_t device; ino_t inode; off_t sector; };
static struct kept *kept;
static size_t kept_count, kept_room;

static int is_kept(struct undo *undo, off_t sector) {
    for (size_t at = 0; at < kept_count; at++)
        if (kept[at].sector == sector && kept[at].inode == undo->inode && kept[at].device == undo->device) return 1;
    return 0;
}

static void keep(struct undo *undo, off_t sector) {
    if (kept_count == kept_room) {
        kept_room = kept_room ? 2 * kept_room : 256;
        kept = realloc(kept, kept_room * sizeof *kept);
        if (!kept) abort();
    }
    kept[kept_count++] = (struct kept){ undo->device, undo->inode, sector };
}

/* Called with the lock, and never returns. */
static void cut(void) {
    uint64_t state = board[SEED];
    /* Of every cut some lose nearly all and some nearly nothing. */
    uint64_t percent = 10 + draw(&state) % 90;
    for (struct undo *undo = last; undo; undo = undo->before) {
        if (undo->truncation) {
            if (draw(&state) % 100 < percent) {
                real_truncate(undo->fd, undo->size);
                if (undo->length) real_pwrite(undo->fd, undo->old, undo->length, undo->at);
                count(SECTORS_LOST);
            }
            continue;
        }
        off_t end = undo->at + undo->length;
        for (off_t sector = undo->at / SECTOR; sector * SECTOR < end; sector++) {
            if (is_kept(undo, sector)) continue;
            if (draw(&state) % 100 >= percent) { keep(undo, sector); count(SECTORS_KEPT); continue; }
            off_t from = sector * SECTOR > undo->at ? sector * SECTOR : undo->at;
            off_t to = (sector + 1) * SECTOR < end ? (sector + 1) * SECTOR : end;
            real_pwrite(undo->fd, undo->old + (from - undo->at), to - from, from);
            count(SECTORS_LOST);
        }
    }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Notes what a change is about to replace. Called with the lock. */
static void note(int fd, off_t at, size_t length, int truncation) {
    struct stat stat;
    if (fstat(fd, &stat)) return;
    struct undo *undo = calloc(1, sizeof *undo);
    if (!undo) abort();
    if (truncation) {
        length = stat.st_size > at ? stat.st_size - at : 0;
        undo->truncation = 1;
    }
    undo->old = calloc(1, length + 1);
    /* The node's own descriptor may be for writing only. */
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    undo->fd = open(link, O_RDWR | O_CLOEXEC);
    if (!undo->old || undo->fd < 0) { free(undo->old); free(undo); return; }
    if (undo->fd < FDS) known[undo->fd] = 1;
    for (size_t done = 0; done < length;) {
        ssize_t got = pread64(undo->fd, undo->old + done, length - done, at + done);
        if (got <= 0) break;
        done += got;
    }
    undo->device = stat.st_dev; undo->inode = stat.st_ino;
    undo->at = at; undo->length = length; undo->size = stat.st_size;
    undo->sync = syncs; undo->before = last;
    last = undo;
}

/* What was written before sync `number` of this file began is on the disk. */
static void settle(int fd, uint64_t number) {
    struct stat stat;
    if (fstat(fd, &stat)) return;
    pthread_mutex_lock(&lock);
    for (struct undo **link = &last; *link;) {
        struct undo *undo = *link;
        if (undo->inode == stat.st_ino && undo->device == stat.st_dev && undo->sync < number) {
            *link = undo->before;
            real_close(undo->fd);
            free(undo->old);
            free(undo);
        } else link = &undo->before;
    }
    pthread_mutex_unlock(&lock);
}

static int sync_with(int fd, int (*real)(int)) {
    if (!ours(fd)) return real(fd);
    if (board[SYNC_STALL_MS]) { count(SYNCS_STALLED); usleep(board[SYNC_STALL_MS] * 1000); }
    if (board[SYNC_ERROR]) { count(SYNCS_FAILED); errno = EIO; return -1; }
    if (!board[UNDO]) return real(fd);
    pthread_mutex_lock(&lock);
    uint64_t number = ++syncs;
    pthread_mutex_unlock(&lock);
    int result = real(fd);
    int saved = errno;
    if (!result) settle(fd, number);
    errno = saved;
    return result;
}

int fsync(int fd) { REAL(fsync); return sync_with(fd, real); }
int fdatasync(int fd) { REAL(fdatasync); return sync_with(fd, real); }

static int refused(int fd) {
    if (!ours(fd) || !board[WRITE_ERROR]) return 0;
    count(WRITES_FAILED);
    errno = EIO;
    return 1;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) {
    if (refused(fd)) return -1;
    if (!ours(fd) || !board[UNDO]) return real_pwrite(fd, bytes, length, at);
    pthread_mutex_lock(&lock);
    note(fd, at, length, 0);
    ssize_t written = real_pwrite(fd, bytes, length, at);
    int saved = errno;
    pthread_mutex_unlock(&lock);
    errno = saved;
    return written;
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return pwrite64(fd, bytes, length, at); }

ssize_t write(int fd, const void *bytes, size_t length) {
    REAL(write);
    if (refused(fd)) return -1;
    if (!ours(fd) || !board[UNDO]) return real(fd, bytes, length);
    pthread_mutex_lock(&lock);
    off_t at = lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    note(fd, at, length, 0);
    ssize_t written = real(fd, bytes, length);
    int saved = errno;
    pthread_mutex_unlock(&lock);
    errno = saved;
    return written;
}

int ftruncate64(int fd, off_t length) {
    if (refused(fd)) return -1;
    if (!ours(fd) || !board[UNDO]) return real_truncate(fd, length);
    pthread_mutex_lock(&lock);
    note(fd, length, 0, 1);
    int result = real_truncate(fd, length);
    int saved = errno;
    pthread_mutex_unlock(&lock);
    errno = saved;
    return result;
}
int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int close(int fd) {
    if (fd >= 0 && fd < FDS) known[fd] = 0;
    return real_close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    REAL(clock_gettime);
    int result = real(clock, time);
    if (result || !board || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return result;
    int64_t offset = (int64_t)board[CLOCK_US];
    if (!offset) return 0;
    count(CLOCK_READS);
    int64_t nanos = time->tv_nsec + offset % 1000000 * 1000;
    time->tv_sec += offset / 1000000;
    if (nanos < 0) { nanos += 1000000000; time->tv_sec -= 1; }
    if (nanos >= 1000000000) { nanos -= 1000000000; time->tv_sec += 1; }
    time->tv_nsec = nanos;
    return 0;
}

static void *watch(void *unused) {
    for (;;) {
        usleep(5000);
        if (board[CUT]) { pthread_mutex_lock(&lock); cut(); }
    }
    return unused;
}

__attribute__((constructor)) static void start(void) {
    const char *dir = getenv("HTJ_SHIM_DIR"), *path = getenv("HTJ_SHIM_BOARD"), *program = getenv("HTJ_SHIM_PROGRAM");
    char own[4096];
    ssize_t length = readlink("/proc/self/exe", own, sizeof own - 1);
    if (!dir || !path || !program || length < 0) return;
    own[length] = 0;
    /* Whatever starts the node is not the node. */
    if (strcmp(own, program)) return;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return;
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    real_close(fd);
    if (page == MAP_FAILED) return;
    snprintf(place, sizeof place, "%s", dir);
    place_length = strlen(place);
    board = page;
    pthread_t thread;
    if (!pthread_create(&thread, NULL, watch, NULL)) board[READY] = getpid();
}
