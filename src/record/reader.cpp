// src/record/reader.cpp: see reader.hpp
#include "record/reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <unordered_map>

#include "record/ring.hpp"

namespace weir {

namespace {

// Reads forward in one block (or the file) and never past its end. A failed read gives zero and `ok` false from then
// on.
class Cursor {
 public:
  explicit Cursor(std::span<const std::byte> bytes) : bytes_(bytes) {}

  [[nodiscard]] bool ok() const { return ok_; }
  [[nodiscard]] size_t left() const { return bytes_.size(); }
  std::span<const std::byte> take(size_t size) {
    if (size > bytes_.size()) ok_ = false;
    if (!ok_) return {};
    const auto taken = bytes_.first(size);
    bytes_ = bytes_.subspan(size);
    return taken;
  }
  template <class T>
  T value() {
    T x{};
    const auto from = take(sizeof x);
    if (!from.empty()) std::memcpy(&x, from.data(), sizeof x);
    return x;
  }
  // What comes before the next zero byte, which is passed over.
  std::string text() {
    const auto* from = reinterpret_cast<const char*>(bytes_.data());
    const void* end = bytes_.empty() ? nullptr : std::memchr(from, 0, bytes_.size());
    if (end == nullptr) ok_ = false;
    if (!ok_) return {};
    const auto size = static_cast<size_t>(static_cast<const char*>(end) - from);
    std::string text = printable(take(size));
    take(1);
    return text;
  }
  // Names are printed on terminals: nothing in a file may move the cursor there.
  static std::string printable(std::span<const std::byte> bytes) {
    std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    for (char& c : text)
      if ((static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7f) c = '?';
    return text;
  }

 private:
  std::span<const std::byte> bytes_;
  bool ok_ = true;
};

class Parser {
 public:
  explicit Parser(std::span<const std::byte> bytes) : whole_(bytes), file_(bytes) {}

  Recording run() {
    if (header()) {
      result_.status = Recording::Status::broken;
      result_.sites.resize(1);
      blocks();
      place_notes();
    }
    return std::move(result_);
  }

 private:
  [[nodiscard]] size_t place() const { return whole_.size() - file_.left(); }

  bool refuse(std::string why) {
    result_.problem = std::move(why);
    return false;
  }

  bool header() {
    const auto header = file_.value<RecordingHeader>();
    if (!file_.ok() && whole_.empty()) return refuse("the file is empty: nothing was recorded into it");
    if (!file_.ok() || header.magic != RecordingHeader::MAGIC)
      return refuse("not a recording: it does not begin with \"weirrec\"; `weir sim --record FILE` makes one");
    if (header.version != RecordingHeader::VERSION || header.event_size != sizeof(FlowEvent))
      return refuse(fmt::format(
          "a recording of format {}, events of {} bytes; this weir reads format {}, {} bytes: record it anew",
          header.version, header.event_size, RecordingHeader::VERSION, sizeof(FlowEvent)));
    return true;
  }

  void blocks() {
    while (file_.left() > 0) {
      const size_t start = place();
      const auto header = file_.value<BlockHeader>();
      const auto payload = file_.take(header.bytes);
      if (!file_.ok()) {
        result_.problem = fmt::format("cut short: the file ends at byte {}, inside a block that begins at byte {}",
                                      whole_.size(), start);
        // Whole events of a cut block are good.
        if (header.tag == BLOCK_EVENTS && whole_.size() - start > sizeof header) {
          Cursor rest(whole_.subspan(start + sizeof header));
          events(rest, Ending::cut);
        }
        return;
      }
      Cursor block(payload);
      if (const char* wrong = read_block(header.tag, block); wrong != nullptr) {
        result_.problem = fmt::format("damaged at byte {}: {}; what was recorded before it is shown", start, wrong);
        return;
      }
      if (result_.status == Recording::Status::whole) {
        if (file_.left() > 0) result_.problem = fmt::format("{} bytes after the end mark are ignored", file_.left());
        return;
      }
    }
    result_.problem =
        fmt::format("cut short: no end mark; the file ends at byte {}, after event {}", whole_.size(), next_);
  }

  // What is wrong with the block; null if nothing. A tag that is not known is passed over.
  const char* read_block(uint32_t tag, Cursor& block) {
    switch (tag) {
      case BLOCK_STATES: return states(block);
      case BLOCK_SITE: return site(block);
      case BLOCK_TASK: return task(block);
      case BLOCK_FACT: return fact(block);
      case BLOCK_NOTE: return note(block);
      case BLOCK_EVENTS: return events(block, Ending::whole);
      case BLOCK_DONE: return done(block);
      default: return nullptr;
    }
  }

  const char* states(Cursor& block) {
    if (!result_.states.empty()) return "the names of states come twice";
    constexpr size_t MOST = 0x10000 - FlowEvent::STATE;
    while (block.left() > 0 && block.ok() && result_.states.size() < MOST) result_.states.push_back(block.text());
    return block.ok() && block.left() == 0 ? nullptr : "the names of states do not end";
  }

  const char* site(Cursor& block) {
    const auto id = block.value<uint16_t>();
    Recording::Site site{block.text(), block.text(), block.text()};
    if (!block.ok() || id == 0) return "a function's name does not end";
    // Numbers go up by one: so a file of n bytes makes a table of at most n entries.
    if (id != result_.sites.size()) return "a function's number is out of turn";
    result_.sites.push_back(std::move(site));
    return nullptr;
  }

  const char* task(Cursor& block) {
    const auto tid = block.value<int32_t>();
    const auto pid = block.value<int32_t>();
    const auto comm = block.take(16);
    if (!block.ok()) return "a task's name is cut";
    const auto end = std::find(comm.begin(), comm.end(), std::byte{0});
    Recording::Task task{tid, pid, Cursor::printable({comm.begin(), end})};
    const auto [at, is_new] = task_at_.try_emplace(tid, result_.tasks.size());
    if (is_new)
      result_.tasks.push_back(std::move(task));
    else
      result_.tasks[at->second] = std::move(task);
    return nullptr;
  }

  const char* fact(Cursor& block) {
    while (block.left() > 0) {
      const auto key = block.value<uint16_t>();
      const auto value = block.value<uint16_t>();
      Recording::Fact fact{Cursor::printable(block.take(key)), Cursor::printable(block.take(value))};
      if (!block.ok()) return "a fact is cut";
      result_.facts.push_back(std::move(fact));
    }
    return nullptr;
  }

  const char* note(Cursor& block) {
    Recording::Note note;
    note.at = block.value<uint64_t>();  // a number since the start; place_notes() makes an index of it
    note.time = block.value<uint64_t>();
    const auto key = block.value<uint32_t>();
    const auto text = block.value<uint32_t>();
    note.key = Cursor::printable(block.take(key));
    note.text = Cursor::printable(block.take(text));
    if (!block.ok()) return "a note is cut";
    result_.notes.push_back(std::move(note));
    return nullptr;
  }

  enum class Ending : uint8_t { whole, cut };

  const char* events(Cursor& block, Ending ending) {
    const auto first = block.value<uint64_t>();
    if (!block.ok()) return "a block of events is cut";
    const size_t count = block.left() / sizeof(FlowEvent);
    if (ending == Ending::whole && block.left() % sizeof(FlowEvent) != 0) return "a block of events holds part of one";
    if (first < next_ || first > UINT64_MAX - count) return "events are out of turn";
    if (result_.events.size() + count >= UINT32_MAX) return "more events than a flow tree can number";
    const size_t index = result_.events.size();
    if (index == 0) {
      result_.first = first;
    } else if (first > next_) {
      result_.lost += first - next_;
      result_.gaps.push_back({index, first - next_});
    }
    runs_.push_back({first, index});
    result_.events.resize(index + count);
    const auto from = block.take(count * sizeof(FlowEvent));
    if (count > 0) std::memcpy(result_.events.data() + index, from.data(), from.size());
    for (size_t i = 0; i < count; ++i) {
      const FlowEvent& event = result_.events[index + i];
      const bool named =
          event.site < result_.sites.size() &&
          (event.is_enter() || event.is_leave() || (event.is_state() && event.state() < result_.states.size()));
      if (named) continue;
      result_.events.resize(index + i);
      next_ = first + i;
      return "an event is of a function or kind that the file does not name";
    }
    next_ = first + count;
    return nullptr;
  }

  const char* done(Cursor& block) {
    const auto recorded = block.value<uint64_t>();
    if (!block.ok()) return "the end mark is cut";
    if (recorded < next_) return "the end mark counts fewer events than there are";
    result_.recorded = recorded;
    if (!result_.events.empty()) result_.lost += recorded - next_;
    result_.status = Recording::Status::whole;
    return nullptr;
  }

  void place_notes() {
    for (Recording::Note& note : result_.notes) {
      const auto after = std::upper_bound(runs_.begin(), runs_.end(), note.at,
                                          [](uint64_t number, const Run& run) { return number < run.first; });
      if (after == runs_.begin()) {
        note.at = 0;
        continue;
      }
      const size_t end = after == runs_.end() ? result_.events.size() : after->index;
      const Run& run = *(after - 1);
      note.at = std::min<uint64_t>(end, run.index + std::min<uint64_t>(note.at - run.first, result_.events.size()));
    }
    std::stable_sort(result_.notes.begin(), result_.notes.end(),
                     [](const auto& a, const auto& b) { return a.at < b.at; });
  }

  struct Run {
    uint64_t first;  // number since the start
    size_t index;    // in events
  };

  std::span<const std::byte> whole_;
  Cursor file_;
  Recording result_;
  uint64_t next_ = 0;  // number of the next event
  std::vector<Run> runs_;
  std::unordered_map<int32_t, size_t> task_at_;
};

}  // namespace

std::string_view Recording::comm(int32_t tid) const {
  const auto at = std::find_if(tasks.begin(), tasks.end(), [&](const Task& task) { return task.tid == tid; });
  return at == tasks.end() ? std::string_view() : at->comm;
}

std::string_view Recording::fact(std::string_view key) const {
  const auto at = std::find_if(facts.begin(), facts.end(), [&](const Fact& fact) { return fact.key == key; });
  return at == facts.end() ? std::string_view() : at->value;
}

Recording parse(std::span<const std::byte> bytes) { return Parser(bytes).run(); }

Recording read_recording(const std::string& path) {
  Recording refused;
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    refused.problem = fmt::format("{}: {}", path, std::strerror(errno));
    return refused;
  }
  std::vector<std::byte> bytes;
  constexpr size_t STEP = 1u << 20;
  size_t used = 0, got = 0;
  do {
    bytes.resize(used + STEP);
    got = std::fread(bytes.data() + used, 1, STEP, file);
    used += got;
  } while (got > 0);
  const int error = std::ferror(file) != 0 ? errno : 0;
  std::fclose(file);
  if (error != 0) {
    refused.problem = fmt::format("{}: {}", path, std::strerror(error));
    return refused;
  }
  Recording recording = parse(std::span(bytes).first(used));
  if (!recording.problem.empty()) recording.problem = fmt::format("{}: {}", path, recording.problem);
  return recording;
}

FlowOutput output_to(std::vector<std::byte>& bytes) {
  return {[](void* context, const void* from, size_t size) {
            auto& to = *static_cast<std::vector<std::byte>*>(context);
            const auto* first = static_cast<const std::byte*>(from);
            to.insert(to.end(), first, first + size);
            return true;
          },
          &bytes};
}

Recording snapshot(const FlowRing& ring) {
  std::vector<std::byte> bytes;
  write_ring(ring.memory(), "", output_to(bytes));
  return parse(bytes);
}

}  // namespace weir
