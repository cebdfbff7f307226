/* include/weir/weir.h
 *
 * More memory than RAM, from C: a region of memory that is larger than the RAM it may use. What does not fit is
 * compressed or written to a file by a memory manager inside the process, as Linux would do it, and comes back when it
 * is touched.
 *
 *   weir_region_options options;
 *   weir_region_options_init(&options);
 *   options.size = 4ull << 30;
 *   options.ram = 1ull << 30;
 *   options.swap = (const char* const[]){"zram", "file:/var/tmp"};
 *   options.nr_swap = 2;
 *   char why[512];
 *   weir_region* region = weir_region_create(&options, why, sizeof why);
 *   if (!region) { fprintf(stderr, "%s\n", why); return 1; }
 *   double* a = weir_region_data(region);      // a plain pointer; any thread may use it
 *   ...
 *   weir_region_destroy(region);
 *
 * Link with -lweir. Linux 6.8 or newer, x86-64.
 */
#ifndef WEIR_WEIR_H
#define WEIR_WEIR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define WEIR_API __attribute__((visibility("default")))
#else
#define WEIR_API
#endif

typedef struct weir_region weir_region;

/* Who serves a touch of a page that is not in RAM. */
enum {
  /* The thread that touches it, in a handler for SIGBUS: fast, and no privilege is needed. The handler passes every
   * other SIGBUS on to the one that was installed before. A system call (read() into the region, say) cannot bring
   * pages in: it fails with EFAULT where one is missing, or stops there. Make its buffer present with
   * weir_region_populate() first, or let the kernel use a buffer outside. SIGBUS must not be blocked in threads that
   * touch the region. */
  WEIR_DELIVERY_SIGNAL = 0,
  /* Threads of weir's. System calls work as on any memory. Needs root, or vm.unprivileged_userfaultfd=1, or access to
   * /dev/userfaultfd; a touch costs more, as threads have to be woken. */
  WEIR_DELIVERY_THREAD = 1
};

typedef struct weir_region_options {
  size_t struct_size;      /* set by weir_region_options_init(): later versions have more fields */
  uint64_t size;           /* bytes of the region */
  uint64_t ram;            /* bytes of RAM for it, at least 4 MiB; weir's own memory and compressed pages are in it */
  const char* const* swap; /* "zram[:lz4|zstd[:SIZE]]", "file:PATH[:SIZE]", "none"; first = used first; NULL: zram */
  unsigned nr_swap;
  int delivery; /* WEIR_DELIVERY_... */
} weir_region_options;

/* Sets struct_size, zeroes the rest. */
WEIR_API void weir_region_options_init(weir_region_options* options);

/* NULL on failure: then `error` (may be NULL) holds a sentence that says what failed and which setting mends it. The
 * memory reads zero. When RAM and swap are full, a report like the kernel's goes to standard error and the process is
 * killed (SIGKILL). After fork() the child must not touch the region. */
WEIR_API weir_region* weir_region_create(const weir_region_options* options, char* error, size_t error_size);
/* The region is unmapped, and files in it as by weir_region_unmap_file, but that nobody is told what could not be
 * written. No thread uses it any more. NULL is allowed. */
WEIR_API void weir_region_destroy(weir_region* region);

WEIR_API void* weir_region_data(const weir_region* region);
WEIR_API uint64_t weir_region_size(const weir_region* region);

/* Both return 0, or an errno: EINVAL (not page aligned), EFAULT or ENOMEM (outside the region). `offset` and `length`
 * in bytes. */
/* The contents of [offset, offset + length) are given up: they read zero. */
WEIR_API int weir_region_discard(weir_region* region, uint64_t offset, uint64_t length);
/* Brings the pages in. They may leave again when others need room. */
WEIR_API int weir_region_populate(weir_region* region, uint64_t offset, uint64_t length, int for_writing);

/* Files, mapped beside the region's memory and paged by it: their pages are the region's RAM too, are read ahead, and
 * are written by threads of weir's when too much is dirty (a tenth of what can be; who dirties more waits) or 30 s after
 * the store. All mappings of a file in one region show the same bytes. Functions return 0 or an errno.
 *
 * What differs from mmap(2):
 *   - A file is told by its device and inode, and at most 15 are mapped at a time.
 *   - What others write to the file by write(), or by mappings elsewhere, another region's too, is seen by pages that
 *     are read after it: MS_INVALIDATE drops those that are here and clean. They see what MS_SYNC or a flusher has
 *     written. A file that grows or shrinks: a page is looked up again only when it is read.
 *   - A page is mapped at one address at a time. Two mappings of a file may be used by several threads, slowly where they
 *     meet; but one instruction that touches the same page of it at two addresses does not get on.
 *   - A store to memory that is mapped for reading is SIGSEGV, as there, and its page then stays in RAM.
 *   - System calls on these addresses: as in the region (WEIR_DELIVERY_SIGNAL: MADV_POPULATE_READ or _WRITE first).
 *   - Under WEIR_DELIVERY_THREAD a page whose access was SIGBUS stays so until it is unmapped.
 * A touch of a page behind the file's end, or that cannot be read, is SIGBUS. */

/* offset: a multiple of 4096. prot: PROT_READ or PROT_READ|PROT_WRITE. flags: MAP_SHARED or MAP_PRIVATE. fd may be
 * closed afterwards. EACCES, EBADF, ENODEV, EINVAL, EOVERFLOW, ENOMEM, EPERM as mmap; ENFILE: 15 files are mapped; EBUSY:
 * to be written, and mapped already through a descriptor that cannot write, or this one appends and the file cannot be
 * opened once more; EAGAIN: no thread can be had. */
WEIR_API int weir_region_map_file(weir_region* region, int fd, uint64_t offset, uint64_t length, int prot, int flags,
                                  void** address);
/* A mapping or a part of it goes, when what was stored in it has been written. EIO, ENOSPC and others: what the file
 * refused to take and this mapping was not told of yet (weir_region_sync_file tells too); it is gone nevertheless, and
 * with the last mapping of the file what could not be written. EINVAL: not page aligned, or no mapping of a file. */
WEIR_API int weir_region_unmap_file(weir_region* region, void* address, uint64_t length);
/* flags as msync(2)'s. MS_SYNC: what was stored is on the disk; EIO, ENOSPC and others as above. MS_ASYNC: starts
 * nothing, as in Linux since 2.6.19. MS_INVALIDATE: see above. EINVAL; ENOMEM: a part is not mapped. */
WEIR_API int weir_region_sync_file(weir_region* region, void* address, uint64_t length, int flags);
/* MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL: how far is read ahead. MADV_WILLNEED: reads, and does not wait.
 * MADV_DONTNEED: a private mapping's copies go. MADV_POPULATE_READ, MADV_POPULATE_WRITE. Others: EINVAL. */
WEIR_API int weir_region_advise_file(weir_region* region, void* address, uint64_t length, int advice);

/* A snapshot. Names as in /proc/vmstat and zram's mm_stat; pages are 4096 bytes. */
typedef struct weir_region_statistics {
  size_t struct_size;           /* set by the caller: sizeof(weir_region_statistics) */
  uint64_t ram_pages;           /* the budget */
  uint64_t host_resident_pages; /* what the host has in RAM for the region, weir's own tables and compressed pages
                                   included */
  uint64_t resident_pages;      /* of the region, and mapped ones of files */
  uint64_t swapped_pages;       /* of the region, and of private mappings of files */
  uint64_t free_pages;
  uint64_t pgfault, pgmajfault, pswpin, pswpout;
  uint64_t pgscan_kswapd, pgscan_direct, pgsteal_kswapd, pgsteal_direct, allocstall;
  uint64_t access_flag_fault; /* touches of pages that were on their way out and still in RAM */
  uint64_t swap_clean_drop;   /* pages that left without being written: their slot still had their bytes */
  uint64_t pinned;            /* times that a page could not leave: the kernel was using it */
  uint64_t swap_total_pages, swap_free_pages;
  uint64_t zram_orig_data_size, zram_compr_data_size, zram_mem_used_total; /* bytes */
  uint64_t file_pages;                                                     /* of mapped files in RAM */
  uint64_t dirty_pages, writeback_pages;                                   /* of them, to be written; being written */
} weir_region_statistics;

/* 0, or EINVAL. */
WEIR_API int weir_region_stats(weir_region* region, weir_region_statistics* statistics);

#ifdef __cplusplus
}
#endif

#endif
