// D2-Net (Dusmanu et al., CVPR 2019) as a cv::Feature2D, for C++ programs on any OpenCV from 4.5.
//
// Header only. Needs OpenCV (core, features2d, imgproc), the C header and library of ONNX Runtime, and a model
// file of d2feat, whose inputs and outputs are in docs/model-format.md. Errors are cv::Exception.
#pragma once

#include <onnxruntime_c_api.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <opencv2/core.hpp>
#include <opencv2/imgproc.hpp>
#include <string>
#include <vector>
#if CV_VERSION_MAJOR >= 5
#include <opencv2/features.hpp>
#else
#include <opencv2/features2d.hpp>
#endif

namespace d2feat {

class D2Feature : public cv::Feature2D {
   public:
    // nfeatures: keep at most so many, those with the highest response; 0 keeps all. scales: sizes of the
    // pyramid's levels relative to the image, ascending. threads: 0 takes one for every core.
    static cv::Ptr<D2Feature> create(const std::string& model, int nfeatures = 0,
                                     const std::vector<double>& scales = {0.25, 0.35, 0.5, 0.71, 1.0},
                                     int threads = 0) {
        return cv::Ptr<D2Feature>(new D2Feature(model, nfeatures, scales, threads));
    }

    // image: 8 bits, grey, BGR or BGRA. mask: 8 bits, of its size, non-zero where keypoints may lie.
    // With useProvidedKeypoints those given are described; they are dropped where they lie outside the image.
    // Without descriptors (cv::noArray()) these are not copied.
    void detectAndCompute(cv::InputArray image, cv::InputArray mask, std::vector<cv::KeyPoint>& keypoints,
                          cv::OutputArray descriptors, bool useProvidedKeypoints = false) override {
        const cv::Mat pixels = bgr(image.getMat()), allowed = mask.getMat();
        if (!allowed.empty() && (allowed.type() != CV_8UC1 || allowed.size() != pixels.size()))
            CV_Error(cv::Error::StsBadArg, "the mask must be 8 bits and of the image's size");
        std::vector<float> points;
        if (useProvidedKeypoints) {
            std::vector<cv::KeyPoint> inside;
            for (const cv::KeyPoint& one : keypoints) {
                const float x = one.pt.x, y = one.pt.y, scale = one.size / SIZE;
                if (!(x >= -0.5f && y >= -0.5f && x <= pixels.cols - 0.5f && y <= pixels.rows - 0.5f)) continue;
                if (!(scale > 0) || !std::isfinite(scale)) continue;
                points.insert(points.end(), {x, y, scale});
                inside.push_back(one);
            }
            keypoints.swap(inside);
            if (keypoints.empty()) return descriptors.release();
        }
        // A mask or none at all: which are the best is known after the mask.
        const std::int64_t limit = useProvidedKeypoints ? 0 : allowed.empty() && nfeatures_ > 0 ? nfeatures_ : -1;
        const std::vector<Value> outputs = run(pixels, limit, points);
        if (useProvidedKeypoints) {
            if (descriptors.needed()) matrix(outputs[4]).copyTo(descriptors);
            return;
        }
        const cv::Mat positions = matrix(outputs[0]), scores = matrix(outputs[1]), scales = matrix(outputs[2]);
        const cv::Mat all = matrix(outputs[3]);
        keypoints.clear();
        cv::Mat kept;
        for (int i = 0; i < positions.rows; ++i) {
            if (nfeatures_ > 0 && static_cast<int>(keypoints.size()) == nfeatures_) break;
            const float x = positions.at<float>(i, 0), y = positions.at<float>(i, 1), scale = scales.at<float>(i);
            const cv::Point nearest(static_cast<int>(x + 0.5f), static_cast<int>(y + 0.5f));
            if (!allowed.empty() && !allowed.at<uchar>(nearest)) continue;
            const int octave = static_cast<int>(std::lrint(std::log2(scale)));
            keypoints.emplace_back(x, y, SIZE * scale, -1.f, scores.at<float>(i), octave);
            if (descriptors.needed()) kept.push_back(all.row(i));
        }
        if (!descriptors.needed()) return;
        if (kept.empty()) return descriptors.release();
        kept.copyTo(descriptors);
    }

    int descriptorSize() const override { return channels_; }
    int descriptorType() const override { return CV_32F; }
    int defaultNorm() const override { return cv::NORM_L2; }
    bool empty() const override { return false; }
    cv::String getDefaultName() const override { return "Feature2D.D2Feature"; }

   private:
    // Diameter in pixels of the region that a keypoint of scale 1 describes.
    static constexpr float SIZE = 32;

    static const OrtApi& api() {
        static const OrtApi* found = OrtGetApiBase()->GetApi(ORT_API_VERSION);
        if (!found) CV_Error(cv::Error::StsError, "the library of ONNX Runtime is older than its header");
        return *found;
    }
    static void check(OrtStatus* status) {
        if (!status) return;
        const std::string message = api().GetErrorMessage(status);
        api().ReleaseStatus(status);
        CV_Error(cv::Error::StsError, "ONNX Runtime: " + message);
    }
    struct Release {
        void operator()(OrtEnv* p) const { api().ReleaseEnv(p); }
        void operator()(OrtSession* p) const { api().ReleaseSession(p); }
        void operator()(OrtSessionOptions* p) const { api().ReleaseSessionOptions(p); }
        void operator()(OrtMemoryInfo* p) const { api().ReleaseMemoryInfo(p); }
        void operator()(OrtValue* p) const { api().ReleaseValue(p); }
        void operator()(OrtTensorTypeAndShapeInfo* p) const { api().ReleaseTensorTypeAndShapeInfo(p); }
        void operator()(OrtModelMetadata* p) const { api().ReleaseModelMetadata(p); }
    };
    template <class T>
    using Owned = std::unique_ptr<T, Release>;
    using Value = Owned<OrtValue>;

    // What `function`, one of the C API's, creates.
    template <class T, class Function, class... Arguments>
    static Owned<T> made(Function function, Arguments... arguments) {
        T* raw = nullptr;
        check(function(arguments..., &raw));
        return Owned<T>(raw);
    }

    D2Feature(const std::string& model, int nfeatures, const std::vector<double>& scales, int threads)
        : nfeatures_(nfeatures), scales_(scales) {
        if (scales.empty()) CV_Error(cv::Error::StsBadArg, "scales must be one or more");
        environment_ = made<OrtEnv>(api().CreateEnv, ORT_LOGGING_LEVEL_ERROR, "d2feat");
        check(api().DisableTelemetryEvents(environment_.get()));
        const auto options = made<OrtSessionOptions>(api().CreateSessionOptions);
        check(api().SetIntraOpNumThreads(options.get(), threads));
        // Aborts the process at models that know Winograd's algorithm (docs/model-format.md).
        const std::string version = OrtGetApiBase()->GetVersionString();
        if (version.rfind("1.", 0) == 0 && std::atoi(version.c_str() + 2) < 23)
            check(api().AddSessionConfigEntry(options.get(), "optimization.disable_specified_optimizers",
                                              "ConvActivationFusion"));
        const std::basic_string<ORTCHAR_T> path(model.begin(), model.end());
        session_ = made<OrtSession>(api().CreateSession, environment_.get(), path.c_str(), options.get());
        memory_ = made<OrtMemoryInfo>(api().CreateCpuMemoryInfo, OrtDeviceAllocator, OrtMemTypeDefault);
        if (said("contract") != "1") CV_Error(cv::Error::StsError, model + " is no model of d2feat's contract 1");
        channels_ = std::stoi(said("channels"));
        size_t optional = 0;  // the one optional input, which the graph itself takes for false
        check(api().SessionGetOverridableInitializerCount(session_.get(), &optional));
        winograd_ = optional > 0;
    }

    std::string said(const char* key) const {
        const auto metadata = made<OrtModelMetadata>(api().SessionGetModelMetadata, session_.get());
        OrtAllocator* allocator = nullptr;
        check(api().GetAllocatorWithDefaultOptions(&allocator));
        char* value = nullptr;
        check(api().ModelMetadataLookupCustomMetadataMap(metadata.get(), allocator, key, &value));
        const std::string copy = value ? value : "";
        if (value) check(api().AllocatorFree(allocator, value));
        return copy;
    }

    // The image as the model takes it: BGR, without gaps between its rows.
    static cv::Mat bgr(const cv::Mat& image) {
        if (image.empty()) CV_Error(cv::Error::StsBadArg, "the image is empty");
        if (image.depth() != CV_8U) CV_Error(cv::Error::StsBadArg, "the image must be of 8 bits");
        cv::Mat pixels = image;
        if (image.channels() == 1)
            cv::cvtColor(image, pixels, cv::COLOR_GRAY2BGR);
        else if (image.channels() == 4)
            cv::cvtColor(image, pixels, cv::COLOR_BGRA2BGR);
        else if (image.channels() != 3)
            CV_Error(cv::Error::StsBadArg, "the image must have 1, 3 or 4 channels");
        return pixels.isContinuous() ? pixels : pixels.clone();
    }

    Value tensor(const void* data, size_t bytes, const std::vector<std::int64_t>& shape,
                 ONNXTensorElementDataType type) const {
        return made<OrtValue>(api().CreateTensorWithDataAsOrtValue, memory_.get(), const_cast<void*>(data), bytes,
                              shape.data(), shape.size(), type);
    }

    // N x C, or N x 1 of one dimension; a view of the tensor's values.
    static cv::Mat matrix(const Value& value) {
        const auto info = made<OrtTensorTypeAndShapeInfo>(api().GetTensorTypeAndShape, value.get());
        size_t dimensions = 0;
        check(api().GetDimensionsCount(info.get(), &dimensions));
        std::vector<std::int64_t> shape(dimensions);
        check(api().GetDimensions(info.get(), shape.data(), dimensions));
        if (dimensions < 1 || dimensions > 2) CV_Error(cv::Error::StsError, "an output of another shape");
        void* data = nullptr;
        check(api().GetTensorMutableData(value.get(), &data));
        return cv::Mat(static_cast<int>(shape[0]), dimensions == 2 ? static_cast<int>(shape[1]) : 1, CV_32F, data);
    }

    std::vector<Value> run(const cv::Mat& pixels, std::int64_t limit, const std::vector<float>& points) const {
        static const std::array<const char*, 5> inputs{"image", "pyramid", "max_keypoints", "points", "winograd"};
        static const std::array<const char*, 5> names{"keypoints", "scores", "scales", "descriptors",
                                                      "point_descriptors"};
        static const float none = 0;
        static const bool faster = true;
        const std::array<Value, 5> values{
            tensor(pixels.data, pixels.total() * 3, {pixels.rows, pixels.cols, 3}, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8),
            tensor(scales_.data(), scales_.size() * sizeof(double), {static_cast<std::int64_t>(scales_.size())},
                   ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE),
            tensor(&limit, sizeof limit, {}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
            tensor(points.empty() ? &none : points.data(), points.size() * sizeof(float),
                   {static_cast<std::int64_t>(points.size() / 3), 3}, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
            tensor(&faster, sizeof faster, {}, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL)};
        std::array<const OrtValue*, 5> given{};
        for (size_t i = 0; i < given.size(); ++i) given[i] = values[i].get();
        std::array<OrtValue*, 5> raw{};
        check(api().Run(session_.get(), nullptr, inputs.data(), given.data(), winograd_ ? 5 : 4, names.data(),
                        names.size(), raw.data()));
        std::vector<Value> outputs;
        for (OrtValue* one : raw) outputs.emplace_back(one);
        return outputs;
    }

    int nfeatures_, channels_ = 0;
    bool winograd_ = false;
    std::vector<double> scales_;
    Owned<OrtEnv> environment_;  // destroyed last
    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
};

}  // namespace d2feat
