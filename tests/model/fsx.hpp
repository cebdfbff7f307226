// tests/model/fsx.hpp
//
// A file exerciser, after the idea of Apple's fsx: random reads, writes, stores and loads through mappings, truncations,
// holes, syncs, dropped caches, by several workers on one file; every byte that is seen is compared with a plain array.
//
//   worker 0 --claims [100, 900)--> write     worker 1 --[800, 850)--> taken: does something else
//            --claims [900, 950)--> load      worker 2 --[900, 920)--> load: readers share
//
// Claims are by byte, so that several work inside one page. What changes the size claims all bytes from the smaller end
// on. What runs without claims: fsync, dropped caches, and a look at the disk:
//
//   fsync begins: the array as it is is noted      it succeeds: that is promised
//   at any moment: each byte on the disk is the promised one, or one written since
//
// A target says what a file is: a machine's, the host's.
#pragma once

#include <algorithm>
#include <cstdarg>
#include <cstring>
#include <deque>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/result.hpp"
#include "base/units.hpp"
#include "model/script.hpp"

namespace weir::model {

/// One file, as one worker has it: opened by it, mapped shared and private. Sizes and positions are bytes.
class FsxTarget {
 public:
  virtual ~FsxTarget() = default;
  virtual Result<uint64_t> read(uint64_t pos, std::byte* to, uint64_t n) = 0;
  virtual Result<uint64_t> write(uint64_t pos, const std::byte* from, uint64_t n) = 0;
  virtual Errno truncate(uint64_t size) = 0;
  /// Bytes of the file become zero.
  virtual Errno punch(uint64_t pos, uint64_t n) = 0;
  /// The file is at least pos + n long.
  virtual Errno allocate(uint64_t pos, uint64_t n) = 0;
  virtual Errno fsync() = 0;
  /// Bytes from there on read as zero whatever the disk has there: a file system's note, kept by fsync with the bytes.
  virtual uint64_t valid_bytes() { return ~uint64_t{0}; }
  enum class Map : uint8_t { shared, private_ };
  virtual Errno load(Map map, uint64_t pos, std::byte* to, uint64_t n) = 0;
  virtual Errno store(Map map, uint64_t pos, const std::byte* from, uint64_t n) = 0;
  /// The private mapping is made anew.
  virtual void remap() = 0;
  virtual void drop_caches() = 0;
  /// Something else happens: time passes, memory gets short.
  virtual void idle(uint64_t what) = 0;
};

struct FsxOptions {
  uint64_t seed = 1;
  uint64_t max_bytes = 256 << 10;
  bool may_fail = false;    ///< devices do; an operation may say EIO, and may have been done in part
  bool behind_end = false;  ///< stores behind the end of the file, in its last page: zeros when the file grows
};

struct FsxTotals {
  uint64_t ops = 0, compared = 0, errors = 0, synced = 0, looks = 0, promised = 0;
  void add(const FsxTotals& o) {
    ops += o.ops, compared += o.compared, errors += o.errors, synced += o.synced, looks += o.looks,
        promised += o.promised;
  }
};

class Fsx {
 public:
  Fsx(const FsxOptions& options, unsigned workers) : options_(options), bytes_(options.max_bytes) {
    for (unsigned i = 0; i < workers; ++i) workers_.push_back({.random = {options.seed * 7919 + i}});
  }

  [[nodiscard]] const std::string& failure() const { return failure_; }
  FsxTotals totals;

  /// One operation of a worker on its target.
  void step(unsigned worker, FsxTarget& target) {
    if (!failure_.empty()) return;
    ++totals.ops;
    Worker& w = workers_[worker];
    const uint64_t what = w.random.below(100);
    const uint64_t pos = w.random.below(options_.max_bytes);
    const uint64_t longest = w.random.below(4) == 0 ? 40000 : w.random.below(2) == 0 ? 5000 : 300;
    const uint64_t n = std::min(1 + w.random.below(longest), options_.max_bytes - pos);
    if (what < 20) return write(target, pos, n);
    if (what < 38) return read(target, pos, n);
    if (what < 50) return load(target, pos, n);
    if (what < 64) return store(w, target, pos, n);
    if (what < 70) return private_store(w, target, pos, n);
    if (what < 76) return private_load(w, target, pos, n);
    if (what < 80) return truncate(target, w.random.below(3) == 0 ? options_.max_bytes - pos / 4 : pos);
    if (what < 84) return punch(target, pos, n);
    if (what < 85) return allocate(target, pos, n);
    if (what < 88) return fsync(target);
    if (what < 90) return target.drop_caches();
    if (what < 91) return w.own.clear(), target.remap();
    target.idle(w.random.next());
  }

  /// What lies on the disk now: disk(pos) is the byte there.
  template <class Disk>
  void look_at_disk(Disk&& disk) {
    if (!promise_ || !failure_.empty()) return;
    ++totals.looks;
    const uint64_t valid = promise_->valid;
    std::vector<bool> good(promise_->bytes.size());
    for (uint64_t at = 0; at < good.size(); ++at)
      good[at] = at < valid ? disk(at) == promise_->bytes[at] : promise_->bytes[at] == std::byte{0};
    for (size_t i = 0; i < history_.size(); ++i) {
      if (first_event_ + i < promise_->since) continue;
      const Event& e = history_[i];
      for (uint64_t at = e.from; at < std::min<uint64_t>(e.to, good.size()); ++at)
        if (!good[at]) good[at] = e.any || at >= valid || disk(at) == byte_of(e.word, at);
    }
    totals.promised += good.size();
    for (uint64_t at = 0; at < good.size(); ++at)
      if (!good[at])
        return fail("byte %lu on the disk is %#x; fsync had promised %#x, and nobody wrote the other", at,
                    static_cast<unsigned>(disk(at)), static_cast<unsigned>(promise_->bytes[at]));
  }

  /// Nobody is at work: all of the file, read by a target.
  void compare_all(FsxTarget& target) {
    read(target, 0, options_.max_bytes);
    load(target, 0, options_.max_bytes);
  }
  [[nodiscard]] uint64_t size() const { return size_; }

 private:
  static constexpr uint64_t PAGE = PAGE_SIZE;
  struct Claim {
    uint64_t from, to;
    bool change;
  };
  struct Worker {
    Random random;
    std::map<uint64_t, std::vector<std::byte>> own = {};  ///< pages that its private mapping has copied
  };
  /// Bytes that may have got other values since a promise: those of `word`, or, `any`, zeros or none at all.
  struct Event {
    uint64_t from, to, word;
    bool any, over = false;
  };
  struct Promise {
    std::vector<std::byte> bytes;
    uint64_t valid;  ///< bytes behind that are zero, and not on the disk
    uint64_t since;  ///< events from there on came later
  };

  static std::byte byte_of(uint64_t word, uint64_t at) {
    return static_cast<std::byte>((word * 0x9e3779b97f4a7c15ull + at * 0xff51afd7ed558ccdull) >> 56);
  }
  void fail(const char* format, ...) __attribute__((format(printf, 2, 3))) {
    if (!failure_.empty()) return;
    char text[300];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    failure_ = text;
  }
  /// True: EIO or no memory, where that may be.
  bool excused(Errno e, const char* what, uint64_t pos) {
    ++totals.errors;
    if (options_.may_fail && (e == Errno::io || e == Errno::nomem)) return true;
    fail("%s at %lu: %s", what, pos, errno_name(e));
    return false;
  }

  // ---- claims
  class Held {
   public:
    Held(Fsx& fsx, uint64_t from, uint64_t to, bool change) : fsx_(fsx) {
      for (const Claim& c : fsx.claims_)
        if (c.from < to && from < c.to && (change || c.change)) return;
      mine_ = fsx.claims_.insert(fsx.claims_.end(), {from, to, change});
      got_ = true;
    }
    ~Held() {
      if (got_) fsx_.claims_.erase(mine_);
    }
    Held(const Held&) = delete;
    explicit operator bool() const { return got_; }

   private:
    Fsx& fsx_;
    std::list<Claim>::iterator mine_;
    bool got_ = false;
  };
  static constexpr uint64_t END = ~uint64_t{0};

  // ---- what may be on the disk
  class Change {
   public:
    Change(Fsx& fsx, uint64_t from, uint64_t to, uint64_t word, bool any) : fsx_(fsx) {
      at_ = fsx.first_event_ + fsx.history_.size();
      fsx.history_.push_back({.from = from, .to = to, .word = word, .any = any});
    }
    ~Change() { fsx_.history_[at_ - fsx_.first_event_].over = true; }
    Change(const Change&) = delete;

   private:
    Fsx& fsx_;
    uint64_t at_;
  };

  // ---- operations
  void write(FsxTarget& target, uint64_t pos, uint64_t n) {
    const bool grows = pos + n > size_;
    Held held(*this, std::min(pos, grows ? size_ : pos), grows ? END : pos + n, true);
    if (!held) return;
    const uint64_t word = ++next_word_, old = size_;
    std::vector<std::byte> data(n);
    for (uint64_t i = 0; i < n; ++i) data[i] = byte_of(word, pos + i);
    Change change(*this, pos, pos + n, word, false);
    std::optional<Change> gap;
    if (pos > old) gap.emplace(*this, old, pos, 0, true);
    Result<uint64_t> done = target.write(pos, data.data(), n);
    if (!done && !excused(done.error(), "write", pos)) return;
    const uint64_t written = done ? *done : 0;
    if (written < n && !options_.may_fail) return fail("write of %lu bytes at %lu wrote %lu", n, pos, written);
    std::copy_n(data.begin(), written, bytes_.begin() + static_cast<ptrdiff_t>(pos));
    if (written > 0) size_ = std::max(size_, pos + written);
  }

  void read(FsxTarget& target, uint64_t pos, uint64_t n) {
    Held held(*this, pos, pos + n, false);
    if (!held) return;
    std::vector<std::byte> data(n);
    Result<uint64_t> done = target.read(pos, data.data(), n);
    if (!done) return (void)excused(done.error(), "read", pos);
    const uint64_t expected = pos < size_ ? std::min(n, size_ - pos) : 0;
    if (*done > expected || (*done < expected && !options_.may_fail))
      return fail("read of %lu bytes at %lu gave %lu, the file has %lu", n, pos, *done, size_);
    compare("read", pos, data.data(), bytes_.data() + pos, *done);
  }

  void load(FsxTarget& target, uint64_t pos, uint64_t n) {
    if (pos >= size_) return;
    n = std::min(n, size_ - pos);
    Held held(*this, pos, pos + n, false);
    if (!held) return;
    std::vector<std::byte> data(n);
    if (const Errno e = target.load(FsxTarget::Map::shared, pos, data.data(), n); e != Errno::ok)
      return (void)excused(e, "load", pos);
    compare("load", pos, data.data(), bytes_.data() + pos, n);
  }

  void store(Worker& w, FsxTarget& target, uint64_t pos, uint64_t n) {
    if (pos >= size_) return;
    // Sometimes on behind the end: nobody sees that.
    const bool behind = options_.behind_end && size_ % PAGE != 0 && w.random.below(8) == 0;
    const uint64_t end = behind ? page_align_up(size_) : std::min(pos + n, size_);
    if (behind) pos = std::max(pos, size_ & PAGE_MASK);
    Held held(*this, pos, behind ? END : end, true);
    if (!held) return;
    const uint64_t word = ++next_word_;
    // Page by page: what a store does that fails is done up to a page's end.
    while (pos < end) {
      const uint64_t some = std::min(end - pos, PAGE - pos % PAGE);
      std::vector<std::byte> data(some);
      for (uint64_t i = 0; i < some; ++i) data[i] = byte_of(word, pos + i);
      Change change(*this, pos, pos + some, word, false);
      if (const Errno e = target.store(FsxTarget::Map::shared, pos, data.data(), some); e != Errno::ok)
        return (void)excused(e, "store", pos);
      if (pos < size_)
        std::copy_n(data.begin(), std::min(some, size_ - pos), bytes_.begin() + static_cast<ptrdiff_t>(pos));
      pos += some;
    }
  }

  /// What a private mapping shows of a page: its own copy, or the file's.
  void private_store(Worker& w, FsxTarget& target, uint64_t pos, uint64_t n) {
    if (pos >= size_) return;
    n = std::min({n, size_ - pos, PAGE - pos % PAGE});
    const uint64_t page = pos / PAGE;
    Held held(*this, page * PAGE, (page + 1) * PAGE, false);  // the rest of it is copied
    if (!held) return;
    // What was behind the file's end when the page was copied is nobody's.
    auto own = w.own.find(page);
    const uint64_t inside = own != w.own.end() ? own->second.size() : std::min(PAGE, size_ - page * PAGE);
    if (pos % PAGE + n > inside) return;
    const uint64_t word = ++next_word_;
    std::vector<std::byte> data(n);
    for (uint64_t i = 0; i < n; ++i) data[i] = byte_of(word, pos + i);
    if (const Errno e = target.store(FsxTarget::Map::private_, pos, data.data(), n); e != Errno::ok)
      return (void)excused(e, "private store", pos);
    if (own == w.own.end()) {
      const auto from = bytes_.begin() + static_cast<ptrdiff_t>(page * PAGE);
      own = w.own.emplace(page, std::vector(from, from + static_cast<ptrdiff_t>(inside))).first;
    }
    std::copy_n(data.begin(), n, own->second.begin() + static_cast<ptrdiff_t>(pos % PAGE));
  }
  void private_load(Worker& w, FsxTarget& target, uint64_t pos, uint64_t n) {
    if (pos >= size_) return;
    n = std::min({n, size_ - pos, PAGE - pos % PAGE});
    Held held(*this, pos, pos + n, false);
    if (!held) return;
    const auto own = w.own.find(pos / PAGE);
    std::vector<std::byte> data(n);
    if (const Errno e = target.load(FsxTarget::Map::private_, pos, data.data(), n); e != Errno::ok)
      return (void)excused(e, "private load", pos);
    if (own != w.own.end() && pos % PAGE + n > own->second.size()) return;
    compare("private load", pos, data.data(),
            own != w.own.end() ? own->second.data() + pos % PAGE : bytes_.data() + pos, n);
  }

  void truncate(FsxTarget& target, uint64_t size) {
    const uint64_t low = std::min(size, size_);
    Held held(*this, low & PAGE_MASK, END, true);
    if (!held) return;
    const uint64_t old = size_;
    Change change(*this, low, END, 0, true);
    if (const Errno e = target.truncate(size); e != Errno::ok) return (void)excused(e, "truncate", size);
    size_ = size;
    if (size < old) std::fill(bytes_.begin() + static_cast<ptrdiff_t>(size), bytes_.end(), std::byte{0});
    for (Worker& w : workers_) w.own.erase(w.own.lower_bound(page_align_up(size) / PAGE), w.own.end());
  }

  void punch(FsxTarget& target, uint64_t pos, uint64_t n) {
    Held held(*this, pos, pos + n, true);
    if (!held) return;
    // A part of it may be done when it fails, so page by page.
    for (const uint64_t end = pos + n; pos < end;) {
      const uint64_t some = std::min(end - pos, PAGE - pos % PAGE);
      Change change(*this, pos, pos + some, 0, true);
      if (const Errno e = target.punch(pos, some); e != Errno::ok) return (void)excused(e, "punch", pos);
      std::fill_n(bytes_.begin() + static_cast<ptrdiff_t>(pos), some, std::byte{0});
      pos += some;
    }
  }

  void allocate(FsxTarget& target, uint64_t pos, uint64_t n) {
    Held held(*this, size_, END, true);
    if (!held) return;
    Change change(*this, size_, END, 0, true);
    if (const Errno e = target.allocate(pos, n); e != Errno::ok) return (void)excused(e, "allocate", pos);
    size_ = std::max(size_, pos + n);
  }

  void fsync(FsxTarget& target) {
    // Changes under way may be on the disk or not.
    uint64_t since = first_event_ + history_.size();
    for (size_t i = 0; i < history_.size(); ++i)
      if (!history_[i].over) {
        since = first_event_ + i;
        break;
      }
    Promise promise{.bytes = {bytes_.begin(), bytes_.begin() + static_cast<ptrdiff_t>(size_)},
                    .valid = target.valid_bytes(),
                    .since = since};
    if (const Errno e = target.fsync(); e != Errno::ok) return (void)excused(e, "fsync", 0);
    ++totals.synced;
    if (promise_ && promise_->since > promise.since) return;
    promise_ = std::move(promise);
    while (first_event_ < promise_->since && !history_.empty() && history_.front().over) {
      history_.pop_front();
      ++first_event_;
    }
  }

  void compare(const char* what, uint64_t pos, const std::byte* found, const std::byte* expected, uint64_t n) {
    totals.compared += n;
    const auto [f, e] = std::mismatch(found, found + n, expected);
    if (f == found + n) return;
    fail("%s: byte %lu is %#x and not %#x; the file has %lu bytes", what, pos + static_cast<uint64_t>(f - found),
         static_cast<unsigned>(*f), static_cast<unsigned>(*e), size_);
  }

  FsxOptions options_;
  std::vector<std::byte> bytes_;  ///< the file; zero behind its end
  uint64_t size_ = 0;
  std::vector<Worker> workers_;
  std::list<Claim> claims_;
  std::deque<Event> history_;
  uint64_t first_event_ = 0;  ///< number of history_'s first
  std::optional<Promise> promise_;
  uint64_t next_word_ = 0;
  std::string failure_;
};

}  // namespace weir::model
